"""The page of all keys, made of the schema, the rules and the comments in configs/: python docs/keys.py > docs/reference/keys.md"""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fgpipe.config import CONFIGS, Config, compose_config
from fgpipe.config import schema as schema_module
from fgpipe.config.rules import RULES

HEAD = """# Keys

Made by `python docs/keys.py > docs/reference/keys.md` of the schema, its rules and the comments in `configs/`; a test holds it to them.

Every key is set by its name on the command line, as in `window=4 optim.lr=0.1`. A group chooses a file, as in `data=cifar10`. Lists are written `[4,4]`, no value `null`. Any other key or value ends in one line, exit code 2. `python -m fgpipe.train --cfg` prints what a run would take.
"""
TOP = "The run"
"""Heading of the keys that stand under no heading in `configs/train.yaml`."""
TYPES = {str: "text", bool: "true | false", list: "a list", dict: "`key: value` pairs"}


def comments(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read the comment beside each key of a file, and the heading that each key stands under."""
    found: dict[str, str] = {}
    under: dict[str, str] = {}
    parent, key, heading = "", "", TOP
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"( *)(\w+):(?:\s+(?!#)\S.*?)?(?:\s+# (.*))?", line):
            indent, name, comment = match.groups()
            parent = "" if not indent else parent
            key = f"{parent}.{name}" if indent else name
            parent = parent or name
            found[key], under[key] = comment or "", heading
        elif match := re.fullmatch(r"\s+# (.*)", line):
            found[key] += " " + match[1]
        elif match := re.fullmatch(r"# (The .*)", line):
            heading = re.sub(r" \(.*", "", match[1])
        elif not line:
            heading = TOP
    return found, under


def opening(path: Path) -> list[str]:
    """Read the comment lines that a file begins with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line[2:])
    return lines


def docstrings() -> dict[str, dict[str, str]]:
    """Read the docstring of each field of each class of the schema; that of the class has the name ""."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(schema_module.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {"": ast.get_docstring(node) or ""}
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
                    found[node.name][field.target.id] = str(text.value.value)
    return found


def row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"


def shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    return f"`{value}`".replace("'", "")


def linked(text: str) -> str:
    """The text with links to the pages that it names, and nothing that reads as a tag."""
    text = text.replace("<", "&lt;")
    text = re.sub(r"docs/reference/(\w+)\.md", r"[\1](\1.md)", text)
    return re.sub(r"docs/results/(\w+)\.md", r"[\1](../results/\1.md)", text)


def key_row(key: str, value: Any, meaning: str) -> str:
    allowed = RULES[key][1] if key in RULES else TYPES.get(type(value), "text, or null")
    return row(f"`{key}`", shown(value), allowed, linked(meaning.removeprefix(allowed).lstrip(":, ")))


def groups() -> Iterator[str]:
    yield "\n## Groups\n"
    for folder in sorted(path for path in CONFIGS.iterdir() if path.is_dir() and path.name != "profile"):
        yield f"\n| `{folder.name}=` | |"
        yield "|---|---|"
        for path in sorted(folder.glob("*.yaml")):
            lines = opening(path)
            command = [f"`{line.strip()}`" for line in lines if line.startswith("  ")]
            yield row(
                f"`{path.stem}`", linked(" ".join([line for line in lines if not line.startswith("  ")] + command))
            )


def page() -> Iterator[str]:
    config, said = compose_config([]), docstrings()
    noted, under = comments(CONFIGS / "train.yaml")
    for group, name in (("model", "resnet18_8"), ("head", "mlp"), ("optim", "step")):
        noted |= {f"{group}.{key}": text for key, text in comments(CONFIGS / group / f"{name}.yaml")[0].items()}
    header = "| key | default, with data=digits | allowed | meaning |\n|---|---|---|---|"
    yield HEAD
    yield from groups()
    flat = [
        field.name
        for field in fields(Config)
        if not is_dataclass(getattr(config, field.name)) and field.name != "guess"
    ]
    order = {key: place for place, key in enumerate(noted)}
    for heading in dict.fromkeys(
        under.get(key, TOP) for key in sorted(flat, key=lambda key: order.get(key, len(order)))
    ):
        yield f"\n## {heading}\n\n{header}"
        for key in flat:
            if under.get(key, TOP) == heading:
                yield key_row(key, getattr(config, key), noted.get(key) or said["Config"].get(key, ""))
    for field in fields(Config):
        part = getattr(config, field.name)
        if is_dataclass(part):
            yield f"\n## `{field.name}.*`\n"
            more = re.findall(r"docs/\S+\.md", noted.get(field.name, ""))
            yield linked(" ".join([said[type(part).__name__][""], *(f"More in {each}." for each in more)]))
            yield f"\n{header}"
            for each in fields(part):
                key = f"{field.name}.{each.name}"
                meaning = noted.get(key) or said[type(part).__name__].get(each.name, "")
                yield key_row(key, getattr(part, each.name), meaning)
    yield "\n## `guess.*`\n\n| guess | key | default | meaning |\n|---|---|---|---|"
    for path in sorted((CONFIGS / "guess").glob("*.yaml")):
        default = compose_config([f"guess={path.stem}", *SPACES.get(path.stem, ())]).guess
        for key, comment in comments(path)[0].items():
            if key != "name":
                yield row(f"`{path.stem}`", f"`guess.{key}`", shown(default[key]), comment)


SPACES = {
    "error": ["space=activity"],
    "local_subspace": ["space=activity"],
    "mixture": ["space=activity"],
    "portfolio": ["space=activity", "scope=batch"],
    "twins": ["space=activity"],
}
"""Settings without which a guess is refused."""


if __name__ == "__main__":
    print(re.sub(r"\n{3,}", "\n\n", "\n".join(page())))
