"""Imports go downwards (design, section 7): mathematics knows no processes, processes know no mathematics."""

import ast
from pathlib import Path

import fgpipe

PACKAGE = Path(fgpipe.__file__).parent
LAYERS = {
    "errors": 0, "rng": 0, "durable": 0, "units": 0, "outputs": 1, "command": 1,
    "config": 1,
    "models": 2, "data": 2, "optim": 2, "gradients": 3, "observe": 3, "checkpoint": 3,
    "claim": 2, "runtime": 4, "resume": 4, "export": 4, "verdict": 4,
    "study.baselines": 5,
    "assembly": 6,
    "saver": 7, "tracer": 7, "session": 8, "study": 9,
    "train": 10, "grid": 10, "report": 10, "doctor": 10, "bench": 10, "simulate": 10, "__init__": 11,
}  # fmt: skip
"""A module imports from its own package, and from lower layers; the longest prefix of its name counts."""
MATHEMATICS_FOR = {
    "stage.py",
    "reference.py",
    "schedule.py",
    "costs.py",
    "links/base.py",
    "links/memory.py",
    "links/distributed.py",
}
"""Files of `runtime` that may know gradients: the steps themselves, and what carries a tangent."""


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, dotted, without `fgpipe.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.removeprefix("fgpipe.") for name in names if name.startswith("fgpipe.")}
    return found


def layer_of(name: str) -> int:
    return next(LAYERS[prefix] for prefix in (".".join(name.split(".")[:2]), name.split(".")[0]) if prefix in LAYERS)


def test_imports_go_downwards() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for name in imports(path):
            same_package = name.split(".")[0] == own.split(".")[0]
            assert same_package or layer_of(name) < layer_of(own), f"{own} imports {name}"


def test_gradients_know_no_processes() -> None:
    for path in (PACKAGE / "gradients").glob("*.py"):
        text = path.read_text()
        assert "torch.distributed" not in text and "zmq" not in text and "threading" not in text, path


def test_processes_know_no_mathematics() -> None:
    runtime = PACKAGE / "runtime"
    for path in runtime.rglob("*.py"):
        if str(path.relative_to(runtime)) not in MATHEMATICS_FOR:
            assert not any(name.startswith("gradients") for name in imports(path)), path
