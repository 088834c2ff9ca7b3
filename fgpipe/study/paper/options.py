"""Keys of `python -m fgpipe.grid`, and the runs that they ask for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os.path import expanduser
from pathlib import Path
from typing import Any

from fgpipe.config import CONFIGS
from fgpipe.config.arguments import by_key, check_keys, load, merged, split
from fgpipe.errors import UserError, bad_value
from fgpipe.study.common.runs import Run
from fgpipe.study.paper.profile import Profile
from fgpipe.study.paper.tables import DATASETS, Cell, published, unpublished

FILTERS = ("dataset", "blocks", "width", "target", "guess", "aux", "space")
DECIDED = ("run_dir", "seed", "resume", "data", "data.name", "data.root", "model", "target", "guess", "space", "scope")
"""Settings of `fgpipe.train` that a cell or a key of ours decides, and those below `model` and `target`; so no override
may, but for `data` of the cells' own data set. With an auxiliary net, `head` and `head.name` too."""
TABLES = tuple(range(2, 13))


@dataclass
class GridOptions:
    """Keys of the grid; `configs/grid.yaml` says what each means."""

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


def parse_options(arguments: Sequence[str]) -> GridOptions:
    """Read `configs/grid.yaml` with `key=value` arguments on top.

    Raises:
        UserError: an unknown key, or a value that it cannot have.
    """
    known = [*asdict(GridOptions()), *(f"roots.{name}" for name in DATASETS), "data.root"]
    check_keys(arguments, known)
    own = [argument for argument in arguments if split(argument)[0] != "data.root"]
    options = merged(load(GridOptions, CONFIGS / "grid.yaml"), own)
    _check(options)
    options.out = expanduser(options.out)
    root = by_key(arguments).get("data.root")
    if root is not None:
        options.roots[_only_dataset(options, root)] = root
    return options


def _only_dataset(options: GridOptions, root: str) -> str:
    """Find the one that `data.root` is of."""
    profile = Profile.load(options.profile)
    names = sorted({cell.dataset for cell in select(options) if profile.serves(cell)})
    if len(names) != 1 or options.roots:
        instead = " and ".join(f"roots.{name}=DIR" for name in names) or "there are none"
        raise bad_value("data.root", root, f"for cells of one data set, without roots; here {instead}")
    return names[0]


def _check(options: GridOptions) -> None:
    for table in as_list(options.table):
        if table != "all" and table not in TABLES:
            raise bad_value("table", table, f"all | {' | '.join(map(str, TABLES))}, or a list of them")
    for name in FILTERS:
        values = {str(getattr(cell, name)): None for cell in published() if getattr(cell, name) is not None}
        for value in as_list(getattr(options, name)):
            if str(value) not in values:
                raise bad_value(name, value, " | ".join(values))
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "seeds": (
            lambda seeds: seeds and min(seeds) >= 0 and len(set(seeds)) == len(seeds),
            "one whole number of at least 0, or more, each once, as in [0,1,2]",
        ),
        "jobs": (lambda jobs: jobs >= 1, "a whole number of at least 1"),
        "nproc": (lambda processes: processes >= 1, "a whole number of at least 1"),
        "launcher": (lambda launcher: launcher in ("python", "torchrun"), "python | torchrun"),
        "shard": (lambda shard: len(shard) == 2 and 0 <= shard[0] < shard[1], "[i,n] with i from 0 to n - 1"),
        "overrides": (lambda lines: all("=" in line for line in lines), "a list of key=value"),
    }
    for key, (accepts, allowed) in rules.items():
        if not accepts(getattr(options, key)):
            raise bad_value(key, getattr(options, key), allowed)


def _check_overrides(overrides: Mapping[str, str], cells: Sequence[Cell]) -> None:
    for key, value in overrides.items():
        group, name = key.partition(".")[::2]
        same = key == "data" and all(cell.dataset == value for cell in cells)
        decided = not same and (key in DECIDED or (group in ("model", "target") and name))
        if decided or (key in ("head", "head.name") and any(cell.aux is not None for cell in cells)):
            allowed = f"settings that the cells, their seeds and folders leave open; {key} is not one"
            raise bad_value("overrides", f"[{key}={value}]", allowed)


def as_list(value: Any) -> list[Any]:
    """List the values: None is none, anything but a list is one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def select(options: GridOptions) -> list[Cell]:
    """Select the cells that tables and filters keep, in the paper's order."""
    tables = as_list(options.table)
    cells = [*published(), *(unpublished() if options.unpublished else ())]
    cells = [cell for cell in cells if "all" in tables or cell.table in tables]
    for name in FILTERS:
        wanted = [str(value) for value in as_list(getattr(options, name))]
        if wanted:
            cells = [cell for cell in cells if str(getattr(cell, name)) in wanted]
    return cells


@dataclass(frozen=True)
class GridPlan:
    """Cells asked for, and the runs that measure them."""

    cells: list[Cell]
    runs: list[Run]
    """Runs in their order: the first seed of all, then the next."""
    unserved: list[Cell]
    """Cells whose data set the profile does not have."""

    @classmethod
    def make(cls, options: GridOptions) -> "GridPlan":
        """
        Raises:
            UserError: no cell is selected, an override would make another cell of one, or the profile does not exist or
                fits a cell no learning rate.
        """
        profile = Profile.load(options.profile)
        extra = by_key(options.overrides)
        cells = select(options)
        if not cells:
            asked = {name: getattr(options, name) for name in ("table", *FILTERS)}
            shown = " ".join(f"{name}={value}" for name, value in asked.items() if value is not None)
            raise UserError(f"{shown}: allowed: values that a cell of the paper has together; none has these")
        served = list(filter(profile.serves, cells))
        _check_overrides(extra, served)
        runs: dict[tuple, Run] = {}
        for seed in options.seeds:
            for cell in served:
                settings = profile.settings(cell) | extra
                runs.setdefault((*sorted(settings.items()), seed), Run(settings, seed)).cells.append(cell)
        index, count = options.shard
        return cls(cells, list(runs.values())[index::count], [cell for cell in cells if not profile.serves(cell)])


def out_folder(options: GridOptions) -> Path:
    """Folder of the grid, absolute, as runs may be started elsewhere."""
    return Path(options.out).resolve()
