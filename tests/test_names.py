"""Names: a class is known by its name alone, whatever module it is in."""

import ast
from collections import defaultdict
from pathlib import Path

import fgpipe

PACKAGE = Path(fgpipe.__file__).parent


def test_every_class_name_is_defined_once() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(str(path.relative_to(PACKAGE)))
    assert len(modules) > 100
    assert {name: places for name, places in modules.items() if len(places) > 1} == {}
