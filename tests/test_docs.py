"""README and docs: short enough to be read, made of what is there, and without a link that leads nowhere."""

import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from tests.integration.launching import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*/*.md"))]
CODE = [
    path for folder in ("fgpipe", "tests", "configs", "launch") for path in (ROOT / folder).rglob("*") if path.is_file()
]


def trainings() -> list[str]:
    """Commands that train, of all pages, each in one line and without its comment."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({" ".join(shlex.split(line, comments=True)) for line in lines if "-m fgpipe.train " in f"{line} "})


def output(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCS / script)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_prose_is_within_its_limits() -> None:
    done = output("words.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script, page", [("keys.py", "reference/keys.md"), ("cells.py", "results/cells.md")])
def test_pages_are_what_makes_them(script: str, page: str) -> None:
    """Of the schema, and of the runs."""
    done = output(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (DOCS / page).read_text(), f"python docs/{script} > docs/{page}"


@pytest.mark.parametrize("command", trainings())
def test_trainings_are_accepted(command: str) -> None:
    """By the checks of the configuration, for as many processes as the command starts."""
    launcher, keys = command.split("-m fgpipe.train")
    processes = math.prod(int(number) for number in re.findall(r"--(?:nproc_per_node|nnodes)=(\d+)", launcher))
    overrides = [key for key in keys.split() if "=" in key and "$" not in key]
    if "launch/elastic" in launcher:  # which starts a job for each block
        overrides += ["elastic.block=0", "elastic.store=127.0.0.1:29400"]
    check_world(compose_config(overrides), processes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_pages_that_code_names_are_there() -> None:
    named = {
        name
        for path in CODE
        if path.suffix in (".py", ".yaml", "")
        for name in re.findall(r"docs/[\w/-]+\.(?:md|py|yaml)", path.read_text(errors="ignore"))
    }
    assert len(named) > 10
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_site_has_every_page() -> None:
    listed = re.findall(r"- (?:\w+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "never wait for a backward pass" in (tmp_path / "site" / "index.html").read_text()


def test_every_study_has_its_command() -> None:
    pages = [page for page in sorted((DOCS / "results").glob("*.md")) if page.name != "README.md"]
    commands = re.compile(r"```bash\n[^`]*(?:python -m fgpipe\.|bash launch/)")
    assert [page.name for page in pages if not commands.search(page.read_text())] == []
