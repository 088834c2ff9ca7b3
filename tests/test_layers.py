"""The house: imports go downwards, without exceptions; mathematics knows no processes, processes know no mathematics."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import fgpipe

PACKAGE = Path(fgpipe.__file__).parent
FLOORS = (
    ("errors",),
    ("config",),
    ("models", "data"),
    ("gradients",),
    ("saving",),
    ("observe",),
    ("plan",),
    ("wire",),
    ("cluster",),
    ("trainers",),
    ("elastic",),
    ("study",),
)
"""Rooms of the package, the ground floor first: each imports from those below it and from itself."""
SHELL = (
    "command",
    "train",
    "export",
    "show",
    "grid",
    "report",
    "doctor",
    "bench",
    "simulate",
    "advise",
    "status",
    "store",
)
"""Commands, and how each begins and ends."""
MATHEMATICS_FOR = {"wire": {"batch.py", "links/receiver.py"}, "cluster": {"replicas.py"}}
"""Files of processes that know what they carry: tangents, and what a block has learnt."""
MOST = 8
"""Parameters of a constructor."""


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, dotted, without `fgpipe.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.removeprefix("fgpipe.") for name in names if name.startswith("fgpipe.")}
    return found


def floor_of(room: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


def files(room: str) -> Iterator[Path]:
    yield from sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def test_imports_go_downwards() -> None:
    for floor, rooms in enumerate(FLOORS):
        for room in rooms:
            for path in files(room):
                for name in imports(path) - {"command"}:
                    other = name.split(".")[0]
                    assert other == room or floor_of(other) < floor, f"{path.relative_to(PACKAGE)} imports {name}"


def test_commands_are_the_studies_and_nobody_elses() -> None:
    """`command`, which gives a study its exit codes, knows errors alone."""
    assert imports(PACKAGE / "command.py") == {"errors"}
    for room in (room for rooms in FLOORS for room in rooms if room != "study"):
        assert not any("command" in imports(path) for path in files(room)), room


def test_the_top_level_is_small() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed", "__init__.py")}
    commands = {"train", "export", "show", "grid", "report", "doctor", "bench", "simulate", "advise", "status", "store"}
    assert commands < entries and len(entries - commands) <= 14, sorted(entries - commands)
    assert entries == {room for rooms in FLOORS for room in rooms} | set(SHELL)


def test_gradients_know_no_processes() -> None:
    for path in (PACKAGE / "gradients").rglob("*.py"):
        text = path.read_text()
        assert "torch.distributed" not in text and "zmq" not in text and "threading" not in text, path


def test_processes_know_no_mathematics() -> None:
    for room, knowing in MATHEMATICS_FOR.items():
        for path in (PACKAGE / room).rglob("*.py"):
            if str(path.relative_to(PACKAGE / room)) not in knowing:
                assert not any(name.startswith("gradients") for name in imports(path)), path


def test_steps_know_no_processes() -> None:
    """Modules that a worker drives import no socket, link, thread or store."""
    for name in ("stage", "oracle", "step"):
        path = PACKAGE / f"trainers/{name}.py"
        assert not any(other.startswith(("wire.links", "wire.post", "wire.inbox")) for other in imports(path)), path
        assert not {"torch.distributed", "threading", "zmq"} & {
            line.split()[1] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))
        }, path


def test_constructors_are_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                count = len(node.args.args) + len(node.args.kwonlyargs) - 1
                assert count <= MOST, f"{path.relative_to(PACKAGE)}:{node.lineno} has {count}"


def test_the_public_face_is_documented() -> None:
    for name in fgpipe.__all__:
        assert inspect.getdoc(getattr(fgpipe, name)), name
