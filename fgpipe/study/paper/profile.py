"""Profile, which turns each cell of the paper into one complete configuration, as overrides of `configs/train.yaml`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fgpipe.config import CONFIGS
from fgpipe.config.arguments import by_key, load
from fgpipe.errors import UserError, bad_value
from fgpipe.saving.resume import flat
from fgpipe.study.paper.tables import Cell, Key

SCOPES = {"activity": "sample", "weight": "tensor"}
"""Scope of the paper in each space (A.3)."""
DEPTHS = {"global": None, "intermediate": 1, "local": 0}
"""Depth of each target of the paper."""


@dataclass
class Profile:
    """Settings of a grid's cells, and how the cells differ in data, width and learning rate; see `configs/profile`."""

    datasets: dict[str, str] = field(default_factory=dict)
    """Data set of the paper to the data group that serves it."""
    width_factor: float = 1.0
    widths: dict[str, float] = field(default_factory=dict)
    """Width of a cell to its factor."""
    overrides: list[str] = field(default_factory=list)
    """Settings of `fgpipe.train` for every cell."""
    of_dataset: dict[str, list[str]] = field(default_factory=dict)
    """More of them for the cells of a data set of the paper."""
    rates: list[Any] = field(default_factory=list)
    """Rules: fields of a cell with the value, or the list of values, that they must have, and `lr`. The first that
    fits gives the learning rate."""

    @classmethod
    def load(cls, name: str) -> "Profile":
        """Read `configs/profile/<name>.yaml`.

        Raises:
            UserError: there is no such profile, or the file has other keys or values of the wrong type.
        """
        path = CONFIGS / "profile" / f"{name}.yaml"
        if not path.is_file():
            allowed = " | ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
            raise bad_value("profile", name, allowed)
        return load(cls, path)

    def serves(self, cell: Cell) -> bool:
        """Tell whether the profile has the cell's data set."""
        return cell.dataset in self.datasets

    def settings(self, cell: Cell) -> dict[str, str]:
        """Configure a cell that the profile serves, key to value; without data root, seed and folder.

        Where a cell leaves head or space open nothing depends on them, and they get one fixed value, so that cells
        that mean the same training have the same settings.
        """
        space = cell.space or "weight"
        settings = {
            "data": self.datasets[cell.dataset],
            "model": f"resnet18_{cell.blocks}",
            "model.width": f"{self.width_factor * self.widths[cell.width]:g}",
            "head": cell.aux or "mlp",
            "target": cell.target,
            "guess": cell.guess,
            "space": space,
            "scope": SCOPES[space],
            "optim.lr": f"{self.learning_rate(cell):g}",
        }
        return settings | by_key(self.overrides) | by_key(self.of_dataset.get(cell.dataset, []))

    def learning_rate(self, cell: Cell) -> float:
        """Learning rate of the first rule that fits.

        Raises:
            UserError: none does.
        """
        values = asdict(cell)
        for rule in self.rates:
            wanted = {name: value for name, value in rule.items() if name != "lr"}
            if all(values[name] in (value if isinstance(value, list) else [value]) for name, value in wanted.items()):
                return rule["lr"]
        raise UserError(f"rates: no rule of the profile fits {cell}")


def mismatches(key: Key, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a run's configuration has that is not of the cell: `key=value (the cell has value)`.

    Args: config: a nested one, as in `summary.json`.
    """
    wanted: dict[str, Any] = {
        "data.name": (key.dataset, "image_folder"),
        "model.blocks": (key.blocks,),
        "target.name": (key.target,),
        "target.depth": (DEPTHS[key.target],),
        "guess.name": (key.guess,),
    }
    if key.aux is not None:
        wanted["head.name"] = (key.aux,)
    if key.space is not None:
        wanted |= {"space": (key.space,), "scope": (SCOPES[key.space],)}
    found = dict(flat(config))
    for name, allowed in wanted.items():
        if found.get(name) not in allowed:
            yield f"{name}={found.get(name)} (the cell has {allowed[0]})"
