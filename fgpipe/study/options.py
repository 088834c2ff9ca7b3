"""The keys of `python -m fgpipe.grid`, and the runs that they ask for."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgpipe.config import CONFIGS
from fgpipe.errors import UserError, bad_value
from fgpipe.study.paper import DATASETS, Cell, published, unpublished
from fgpipe.study.profile import Profile
from fgpipe.study.runs import Run

FILTERS = ("dataset", "blocks", "width", "target", "guess", "aux", "space")
TABLES = tuple(range(2, 13))


@dataclass
class Options:
    """See `configs/grid.yaml` for what each key means."""

    table: Any = "all"
    unpublished: bool = False
    profile: str = "full"
    dataset: Any = None
    blocks: Any = None
    width: Any = None
    target: Any = None
    guess: Any = None
    aux: Any = None
    space: Any = None
    seeds: list[int] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    roots: dict[str, str] = field(default_factory=dict)
    out: str = "results"
    jobs: int = 1
    launcher: str = "python"
    nproc: int = 8
    shard: list[int] = field(default_factory=list)
    dry_run: bool = False


def parse_options(arguments: Sequence[str]) -> Options:
    """`configs/grid.yaml` with `key=value` arguments on top.

    Raises:
        UserError: an unknown key, or a value that it cannot have.
    """
    known = [*asdict(Options()), *(f"roots.{name}" for name in DATASETS)]
    merged = OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.load(CONFIGS / "grid.yaml"))
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: allowed: key=value")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            raise UserError(f"{argument}: no such key" + f"; did you mean {' or '.join(near)}?" * bool(near))
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([argument]))
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{argument}: {str(error).splitlines()[0]}") from error
    options = OmegaConf.to_object(merged)
    assert isinstance(options, Options)
    _check(options)
    return options


def _check(options: Options) -> None:
    for key, table in zip(["table"] * 12, as_list(options.table), strict=False):
        if table != "all" and table not in TABLES:
            raise bad_value(key, table, f"all | {' | '.join(map(str, TABLES))}, or a list of them")
    for name in FILTERS:
        values = {str(getattr(cell, name)): None for cell in published() if getattr(cell, name) is not None}
        for value in as_list(getattr(options, name)):
            if str(value) not in values:
                raise bad_value(name, value, " | ".join(values))
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "seeds": (lambda seeds: seeds and min(seeds) >= 0, "one whole number of at least 0, or more, as in [0,1,2]"),
        "jobs": (lambda jobs: jobs >= 1, "a whole number of at least 1"),
        "nproc": (lambda processes: processes >= 1, "a whole number of at least 1"),
        "launcher": (lambda launcher: launcher in ("python", "torchrun"), "python | torchrun"),
        "shard": (lambda shard: len(shard) == 2 and 0 <= shard[0] < shard[1], "[i,n] with i from 0 to n - 1"),
        "overrides": (lambda lines: all("=" in line for line in lines), "a list of key=value"),
    }
    for key, (accepts, allowed) in rules.items():
        if not accepts(getattr(options, key)):
            raise bad_value(key, getattr(options, key), allowed)


def as_list(value: Any) -> list[Any]:
    """None is no value, anything but a list is one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def select(options: Options) -> list[Cell]:
    """The cells that tables and filters keep, in the paper's order."""
    tables = as_list(options.table)
    cells = [*published(), *(unpublished() if options.unpublished else ())]
    cells = [cell for cell in cells if "all" in tables or cell.table in tables]
    for name in FILTERS:
        wanted = [str(value) for value in as_list(getattr(options, name))]
        if wanted:
            cells = [cell for cell in cells if str(getattr(cell, name)) in wanted]
    return cells


@dataclass(frozen=True)
class Plan:
    """The cells asked for, and the runs that measure them."""

    cells: list[Cell]
    runs: list[Run]
    """In the order in which they are run: the first seed of all, then the next."""
    unserved: list[Cell]
    """Cells whose data set the profile does not have."""

    @classmethod
    def make(cls, options: Options) -> "Plan":
        """Raises: UserError: a profile that does not exist or fits a cell no learning rate."""
        profile = Profile.load(options.profile)
        extra = dict(override.split("=", 1) for override in options.overrides)
        cells = select(options)
        runs: dict[tuple, Run] = {}
        for seed in options.seeds:
            for cell in filter(profile.serves, cells):
                settings = profile.settings(cell) | extra
                runs.setdefault((*sorted(settings.items()), seed), Run(settings, seed)).cells.append(cell)
        index, count = options.shard
        return cls(cells, list(runs.values())[index::count], [cell for cell in cells if not profile.serves(cell)])


def out_folder(options: Options) -> Path:
    """The grid's folder, absolute, as runs may be started elsewhere."""
    return Path(options.out).expanduser().resolve()
