"""No file and no socket reaches code that could run what it reads: the sources are walked for the ways to do that.

One module may touch pickles: `fgpipe/data/unpickle.py`, whose unpickler knows arrays and plain containers only
(`tests/test_data.py` feeds it malicious files).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgpipe.config import compose_config
from fgpipe.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "fgpipe").rglob("*.py"), ROOT / "launch" / "two_hosts"])
RESTRICTED = {"fgpipe/data/unpickle.py": {"pickle"}}
"""File -> what it alone may use."""
MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing.connection",
}  # fmt: skip
NAMES = {"eval", "exec", "compile", "__import__"}
"""Builtins; `module.eval()` and `torch.compile` are something else."""
ATTRIBUTES = {
    "torch.load", "torch.jit.load", "torch.package", "torch.hub", "hydra.utils", "numpy.lib.format", "os.system",
    "os.popen",
}  # fmt: skip
"""Dotted, by the name under which the module is usually imported."""
METHODS = re.compile("(send|recv)_pyobj|.*_object_list|(.*_)?gather_object|read_pickle|unsafe_load|full_load")
"""Wherever they are called: zmq's, torch.distributed's, pandas's, yaml's."""


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def forbidden(tree: ast.AST) -> Iterator[str]:
    """Parts of a module that could run code from a file or a socket."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported = [*module, *(".".join([*module, alias.name]) for alias in node.names)]
            for name in imported:
                top = name.split(".")[0]
                if top in MODULES or name in MODULES | ATTRIBUTES or METHODS.fullmatch(name.split(".")[-1]):
                    yield top if top in MODULES else name
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            if METHODS.fullmatch(node.attr) or any(name == each or name.startswith(f"{each}.") for each in ATTRIBUTES):
                yield name or node.attr
            if node.attr in ("eval", "exec") and name.startswith("builtins."):
                yield name
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            if (node.arg, node.value.value) in (("allow_pickle", True), ("shell", True), ("weights_only", False)):
                yield f"{node.arg}={node.value.value!r}"
        elif isinstance(node, ast.Constant) and node.value == "_target_":
            yield "_target_"


def names(path: Path) -> set[str]:
    return set(forbidden(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert names(path) == RESTRICTED.get(str(path.relative_to(ROOT)), set())


def test_all_sources_are_walked() -> None:
    assert len(SOURCES) > 40 and all((ROOT / name) in SOURCES for name in RESTRICTED)
    programs = {path for path in (ROOT / "launch").iterdir() if "python" in path.read_text().partition("\n")[0]}
    assert programs == {ROOT / "launch" / "two_hosts"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as harmless",
        "from pickle import loads",
        "import os, marshal",
        "from multiprocessing.connection import Client",
        "def f():\n    import dill",
        "torch.load('x')",
        "from torch import load",
        "torch.load('x', weights_only=True)",
        "torch.hub.load('x')",
        "socket.recv_pyobj()",
        "self._push.send_pyobj(1)",
        "dist.broadcast_object_list(x)",
        "dist.all_gather_object(x, y)",
        "dist.gather_object(x)",
        "from torch.distributed import scatter_object_list",
        "eval('1')",
        "exec('1')",
        "f = eval",
        "__import__('x')",
        "builtins.eval('1')",
        "hydra.utils.instantiate(config)",
        "from hydra.utils import instantiate",
        "config = {'_target_': 'os.system'}",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "pd.read_pickle(x)",
        "yaml.unsafe_load(x)",
    ],
)
def test_the_walk_finds(source: str) -> None:
    """The negative control: each of these is caught."""
    assert set(forbidden(ast.parse(source)))


@pytest.mark.parametrize("source", ["model.eval()", "torch.compile(f)", "re.compile('x')", "np.load(f)", "load(data)"])
def test_the_walk_lets_pass(source: str) -> None:
    assert not set(forbidden(ast.parse(source)))


def test_configuration_files_name_no_class() -> None:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert files and not [path for path in files if re.search(r"_target_|!!python|!python", path.read_text())]


@pytest.mark.parametrize("key", ["_target_", "+_target_", "model._target_", "+model._target_", "++data._target_"])
def test_users_can_name_none_either(key: str) -> None:
    with pytest.raises(UserError):
        compose_config([f"{key}=os.system"])


MUTATING = re.compile(
    "pop|popleft|popitem|append|appendleft|extend|add|remove|discard|update|clear|insert|setdefault|take|next|.*_"
)


def test_no_assert_does_any_work() -> None:
    """`python -O` leaves them out; `tests/integration/test_optimised.py` compares runs."""
    asserts = [
        (path, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert len(asserts) > 10
    for path, node in asserts:
        for part in ast.walk(node.test):
            name = dotted(part.func).rpartition(".")[2] if isinstance(part, ast.Call) else ""
            works = isinstance(part, ast.NamedExpr | ast.Await | ast.Yield) or MUTATING.fullmatch(name)
            assert not works, f"{path}:{node.lineno}"
