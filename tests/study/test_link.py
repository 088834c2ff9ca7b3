"""The study of slow links: its contestants, what it refuses, and one real study where the rights allow it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fgpipe.study.__main__ import main
from fgpipe.study.contests import link
from fgpipe.study.contests.contest import Contest
from fgpipe.study.contests.link import TWO_HOSTS, LinkOptions, contestants


def test_contestants_can_be_run(tmp_path: Path) -> None:
    """Ours and the peers with either wire; all on the link's interface."""
    wanted = contestants(2)
    Contest(tmp_path, LinkOptions(split=[4, 4], batches=2), [], [each for of in wanted.values() for each in of])
    for kind, of in wanted.items():
        assert len(of) == 7 and sum("guess=end_to_end" in each.overrides for each in of) == 4
        assert all(("wire=bfloat16" in each.overrides) == (kind == "bfloat16") for each in of)
        assert all(("wire=int8" in each.overrides) == (kind == "int8") for each in of)
        assert all("interface=link0" in each.overrides for each in of)
        late = {each.name.removesuffix(f", {kind}"): each.ahead for each in of if each.ahead}
        assert late == {"async 1F1B": 3, "async 1F1B, two versions": 3}
    late = {each.name: each.ahead for each in contestants(4)["float32"] if each.ahead}
    assert late == {"async 1F1B, float32": 3, "async 1F1B, two versions, float32": 1}, "4 microbatches, 3 links"


@pytest.mark.parametrize(
    "argument, expected", [
        ("rate=fast", "rate=fast: allowed: a rate above 0 in kbit, Mbit or Gbit"),
        ("rtt=-1ms", "rtt=-1ms: allowed: a time above 0 in us, ms or s"),
        ("processes=3", "processes=3: allowed: an even number"),
    ],
)  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", str(tmp_path / "study"), argument]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1


def test_no_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what is missing, and no folder."""
    refusing = tmp_path / "two_hosts"
    refusing.write_text("import sys\nprint('two_hosts: needs the right', file=sys.stderr)\nsys.exit(77)\n")
    for path, expected in ((refusing, "two_hosts: needs the right"), (tmp_path / "none", "needs launch/two_hosts")):
        monkeypatch.setattr(link, "TWO_HOSTS", path)
        assert main(["link", str(tmp_path / "study")]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"fgpipe: study link: {expected}") and message.count("\n") == 1
        assert not (tmp_path / "study").exists()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Over a real link no activation can have come faster than its bytes allow; half of the bytes with bfloat16."""
    tried = subprocess.run([sys.executable, str(TWO_HOSTS), "--", "true"], check=False, capture_output=True, text=True)
    if tried.returncode == 77:
        pytest.skip(tried.stderr.strip())
    chosen = {
        kind: [each for each in of if re.match("local target|1F1B", each.name)] for kind, of in contestants(2).items()
    }
    monkeypatch.setattr(link, "contestants", lambda processes: chosen)
    wanted = [each for of in chosen.values() for each in of]
    small = ["model.width=0.07", "batch_size=32", "batches=4", "repeats=1", "head=linear", "split=[4,4]", "rate=8Mbit"]
    assert main(["link", str(tmp_path), *small]) == 0
    figures = {each.name: json.loads((tmp_path / "0" / each.folder / "summary.json").read_text()) for each in wanted}
    sent = {name: each["bytes"]["3->4"]["activations"]["bytes"] for name, each in figures.items()}
    for name in ("local target", "1F1B"):
        assert sent[f"{name}, float32"] == 2 * sent[f"{name}, bfloat16"] > 0
    gradients = [figures[f"1F1B, {kind}"]["bytes"]["4->3"]["gradients"]["bytes"] for kind in ("float32", "bfloat16")]
    assert gradients[0] == 2 * gradients[1] > 0
    for name, each in figures.items():
        epoch = sent[name] / 10 * 4  # of 2 epochs with 4 batches and 1 test batch
        assert each["epochs"][1]["train_seconds"] > 0.5 * epoch * 8 / 8e6, name
    lines = (tmp_path / "link.md").read_text().splitlines()
    assert all(any(line.startswith(f"| {name} |") for line in lines) for name in figures)
