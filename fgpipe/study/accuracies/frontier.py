"""Feedback that pays: accuracy and speed by what comes back, beside local learning and end to end.

    python -m fgpipe.study frontier FOLDER data.root=DIR [methods=[local,mixture,...]] [modules=8] [seeds=3] [rates=[0.025,0.05]]
                                    [rate_epochs=N] [rounds=3] [jobs=1] [out=DIR] [key=value ...]

The setting is that of `study modules`. Each of `rates` is first tried once for every method, in `rate_epochs` epochs (without
it: all), on 3,000 training images that are held out; the setting's rate stays unless another is better by more than a
standard error. Without `rates` all have the setting's. Differences are paired by seed. Windows are those of two processes;
the oracle's methods run in lock-step.

Then `rounds` rounds of short runs on noise in two processes, beside 1F1B: images per second, processor time over that of
local learning, lanes, bytes that come back, and by how many updates of its own an estimate of block 0 comes late.

Runs that FOLDER has are not run again. The tables are printed and written to DIR/frontier.md, in FOLDER without `out`, with a
plot if matplotlib is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from fgpipe.errors import bad_value
from fgpipe.study.accuracies.modules import SETTING
from fgpipe.study.accuracies.scaled import (
    RatedOptions,
    Trainings,
    accuracies,
    accuracy_cells,
    best_rates,
    deviation,
    gap_cell,
    mean_accuracy,
    timed_keys,
)
from fgpipe.study.common.arguments import check_choice, read
from fgpipe.study.common.figure import GUESS_COLORS, INK, drawn
from fgpipe.study.common.runs import origin
from fgpipe.study.contests.contest import Contest, Contestant, ContestOptions, Spread, microbatches, ratios, staged

NOTHING, SCALARS, ROWS, GRADIENTS, ORACLE = "nothing", "scalars", "C floats per sample", "gradients", "by the oracle"
WEIGHTS, WEIGHTS_ALONE = "C floats per sample, rare weights", "rare weights"
COLORS = {
    NOTHING: INK,
    SCALARS: GUESS_COLORS["local"],
    ROWS: GUESS_COLORS["error"],
    WEIGHTS: GUESS_COLORS["twins"],
    WEIGHTS_ALONE: GUESS_COLORS["twins"],
    GRADIENTS: GUESS_COLORS["end_to_end"],
    ORACLE: GUESS_COLORS["end_to_end"],
}
LOCK_STEP = "window=1"
BY_ORACLE = ("tangents=oracle", LOCK_STEP)
AT_OUTPUT = ("space=activity", "scope=sample")
GLOBAL = ("target=global",)
STRIDED = "guess.beside=strided"
OWN = ("target=local", "guess=mixture", "guess.second=own", *AT_OUTPUT)
OWN_TWINS = ("target=local", "guess=twins", "guess.second=own", "guess.share=0.5", *AT_OUTPUT)
SMOOTH = (*GLOBAL, "decode=smoothed", "step=normalised")


@dataclass(frozen=True)
class FrontierMethod:
    """One way to train."""

    back: str
    """What comes back to a block."""
    overrides: tuple[str, ...]

    @property
    def timed(self) -> bool:
        """Whether it runs in a pipeline of processes."""
        return "tangents=oracle" not in self.overrides

    def keys(self, split: Sequence[int]) -> tuple[str, ...]:
        """Keys of a run, with the windows of processes with so many modules each if something comes back to them."""
        if self.back == NOTHING or LOCK_STEP in self.overrides:
            return self.overrides
        return (*self.overrides, staged(split))


METHODS = {
    "end to end": FrontierMethod(GRADIENTS, ("guess=end_to_end", *BY_ORACLE)),
    "half exact gradient": FrontierMethod(
        ORACLE, ("target=global", "guess=mixture", "guess.second=exact", *AT_OUTPUT, *BY_ORACLE)
    ),
    "local": FrontierMethod(NOTHING, ("target=local",)),
    "local spatial": FrontierMethod(NOTHING, ("target=local", "head=spatial")),
    "two heads": FrontierMethod(NOTHING, (*OWN, STRIDED)),
    "two small heads": FrontierMethod(NOTHING, (*OWN, "guess.beside=mlp")),
    "two heads spatial": FrontierMethod(NOTHING, OWN),
    "own private twins": FrontierMethod(NOTHING, (*OWN_TWINS, "guess.weights=private")),
    "own twins": FrontierMethod(WEIGHTS_ALONE, OWN_TWINS),
    "own twins rarely copied": FrontierMethod(WEIGHTS_ALONE, (*OWN_TWINS, "guess.every=32")),
    "own twins by turns": FrontierMethod(WEIGHTS_ALONE, (*OWN_TWINS, "guess.second_every=2", "guess.share=0.9")),
    "scaled local": FrontierMethod(SCALARS, (*SMOOTH, "guess=local", "scope=block", "lanes=1")),
    "portfolio": FrontierMethod(SCALARS, (*SMOOTH, "guess=portfolio", "space=activity", "scope=batch")),
    "portfolio similarity": FrontierMethod(
        SCALARS, (*SMOOTH, "guess=portfolio", "guess.beside=predsim", "space=activity", "scope=batch")
    ),
    "error": FrontierMethod(ROWS, (*GLOBAL, "guess=error", *AT_OUTPUT)),
    "error spatial": FrontierMethod(ROWS, (*GLOBAL, "head=spatial", "guess=error", *AT_OUTPUT)),
    "error distilled": FrontierMethod(ROWS, (*GLOBAL, "guess=error", "head.learns=distilled", *AT_OUTPUT)),
    "mixture": FrontierMethod(ROWS, (*GLOBAL, "guess=mixture", STRIDED, *AT_OUTPUT)),
    "mixture lock-step": FrontierMethod(ROWS, (*GLOBAL, LOCK_STEP, "guess=mixture", STRIDED, *AT_OUTPUT)),
    "mixture spatial": FrontierMethod(ROWS, (*GLOBAL, "guess=mixture", *AT_OUTPUT)),
    "mixture distilled": FrontierMethod(ROWS, (*GLOBAL, "guess=mixture", STRIDED, "head.learns=distilled", *AT_OUTPUT)),
    "private twins": FrontierMethod(ROWS, (*GLOBAL, "guess=twins", "guess.weights=private", *AT_OUTPUT)),
    "twins": FrontierMethod(WEIGHTS, (*GLOBAL, "guess=twins", *AT_OUTPUT)),
    "mixed twins": FrontierMethod(WEIGHTS, (*GLOBAL, "guess=twins", "guess.share=0.5", *AT_OUTPUT)),
    "twins of all": FrontierMethod(WEIGHTS, (*GLOBAL, "guess=twins", "guess.ahead=null", *AT_OUTPUT)),
    "skip path": FrontierMethod(WEIGHTS, (*GLOBAL, "guess=twins", "guess.ahead=null", "guess.path=skip", *AT_OUTPUT)),
}
"""Methods by name: controls first, then by what comes back."""
REFERENCES = ("local", "end to end")


@dataclass
class FrontierOptions(RatedOptions):
    """Keys of this study."""

    processes: int = 1
    seeds: int = 3
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    modules: int = 8
    """Isolated modules of the 8 residual blocks; 16: those of the plain net."""
    rounds: int = 3
    """Rounds of timed runs; 0: none."""

    def check(self) -> None:
        super().check()
        check_choice("methods", self.methods, list(METHODS))
        if self.modules not in (2, 4, 8, 16):
            raise bad_value("modules", self.modules, "2 | 4 | 8 | 16")
        if self.rounds < 0:
            raise bad_value("rounds", self.rounds, "a whole number of at least 0")

    def stated(self) -> list[str]:
        return [*super().stated(), f"modules={self.modules}"]

    @property
    def net(self) -> tuple[str, ...]:
        """Overrides that make the modules; end to end has the same net."""
        blocks = max(8, self.modules)
        sizes = [blocks // self.modules] * self.modules
        return f"model.blocks={blocks}", f"model.modules=[{','.join(map(str, sizes))}]"

    @property
    def split(self) -> list[int]:
        """Modules of each of the two processes."""
        return [self.modules // 2] * 2

    def keys(self, method: str) -> tuple[str, ...]:
        """Keys of a run of a method."""
        return (*self.net, *METHODS[method].keys(self.split))


@dataclass(frozen=True)
class Speed:
    """Figures of a method's timed runs in two processes."""

    ratio: Spread
    """Images per second over 1F1B's."""
    work: Spread | None
    """Processor time over that of local learning; None: local learning was not timed."""
    lanes: float
    """Tangents that cross from one process to the other, per batch."""
    bytes_back: float
    """Of all blocks, per batch."""
    weights_back: float
    """Bytes of weights beside them, of all blocks, per batch."""
    staleness: float
    """Updates of block 0 from a batch's forward pass to its estimate, in the mean."""


@dataclass(frozen=True)
class FrontierRow:
    """Figures of one method."""

    name: str
    values: Sequence[float | None]
    """Test accuracy of each seed; None: it diverged."""
    rate: float | None = None
    """The learning rate that was chosen; None: the setting's."""
    speed: Speed | None = None
    """None: not timed."""


def table(rows: Sequence[FrontierRow]) -> str:
    """Markdown: accuracies as mean and range over the seeds, differences paired by seed."""
    values = {row.name: row.values for row in rows}
    names = ["comes back", "method", "test accuracy", "range", *(f"less {each}, points" for each in REFERENCES)]
    rated = any(row.rate is not None for row in rows)
    lines = [f"| {' | '.join([*names, *['learning rate'] * rated])} |", "|" + "---|" * (len(names) + rated)]
    for row in rows:
        gaps = [
            "" if each == row.name or each not in values else gap_cell(row.values, values[each]) for each in REFERENCES
        ]
        cells = [METHODS[row.name].back, row.name, accuracy_cells(row.values), *gaps]
        cells += [f"{row.rate:g}"] if row.rate is not None else [""] * rated
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" + deviation(values.values())


def speed_table(rows: Sequence[FrontierRow]) -> str:
    """Markdown: what the timed methods cost, as median and range over the rounds."""
    names = ["method", "images/s over 1F1B, median", "range", "processor time over local, median", "range"]
    names += ["lanes", "bytes back per batch", "updates late"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        if (speed := row.speed) is None:
            continue
        work = " | " if speed.work is None else speed.work.cells(".2f")
        beside = f" and {speed.weights_back:,.0f} of weights" if speed.weights_back else ""
        cells = [row.name, speed.ratio.cells(".2f"), work, f"{speed.lanes:g}"]
        cells += [f"{speed.bytes_back:,.0f}{beside}", f"{speed.staleness:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def leading(rows: Sequence[FrontierRow]) -> set[str]:
    """Name the most accurate method of each class, and local learning."""
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        back = METHODS[row.name].back
        best[back] = max(best.get(back, (0.0, "")), (mean_accuracy(row.values) or 0.0, row.name))
    return {"local", *(name for _, name in best.values())}


def plot(rows: Sequence[FrontierRow], path: Path) -> None:
    """Draw mean accuracy against speed, a colour for each class of feedback; the leading methods have their names."""
    named = leading(rows)
    with drawn(path, (7, 4.5)) as axes:
        for row in rows:
            mean, colour = mean_accuracy(row.values), COLORS[METHODS[row.name].back]
            if mean is None:
                continue
            if row.speed is None:
                axes.axhline(100 * mean, color=colour, linestyle="--", linewidth=1)
                axes.annotate(
                    row.name, (0.01, 100 * mean), xycoords=("axes fraction", "data"), va="bottom", color=colour
                )
                continue
            axes.plot(row.speed.ratio.median, 100 * mean, "o", color=colour, mfc=_face(METHODS[row.name].back))
            if row.name in named:
                at = row.speed.ratio.median, 100 * mean
                axes.annotate(row.name, at, xytext=(5, 3), textcoords="offset points", color=colour)
        for back in dict.fromkeys(METHODS[row.name].back for row in rows if row.speed is not None):
            axes.plot([], [], "o", color=COLORS[back], mfc=_face(back), label=back)
        axes.axvline(1, color="0.8", linewidth=1, zorder=0)
        axes.figure.legend(title="comes back", loc="outside lower center", ncols=3, frameon=False)
        axes.margins(x=0.2)
        axes.set(xlabel="images/s over 1F1B, two processes", ylabel="test accuracy, %")


def _face(back: str) -> str:
    """Hollow where two kinds come back."""
    return "none" if back == WEIGHTS else COLORS[back]


def contestants(options: FrontierOptions) -> list[Contestant]:
    """Methods that can be timed, in two processes; the first is 1F1B."""
    piped = ("guess=end_to_end", f"microbatches={microbatches(2)}", "schedule=1f1b", *options.net)
    timed = [name for name in options.methods if METHODS[name].timed]
    return [
        Contestant("1F1B", piped),
        *(Contestant(name, options.keys(name)) for name in timed),
    ]


def measured(contest: Contest, timed: Sequence[Contestant]) -> dict[str, Speed]:
    """Figures of the timed methods, by name."""
    reference, *others = timed
    work = {each.name: [sum(summary["processor_seconds"]) for summary in contest.summaries(each)] for each in others}
    found = {}
    for each in others:
        first = contest.summaries(each)[0]
        (link,) = (flows for flows in first["bytes"].values() if "activations" in flows)
        tangent = link["activations"]["bytes"] / link["activations"]["messages"]
        images = sum(next(iter(epoch["train"].values()))["samples"] for epoch in first["epochs"])
        found[each.name] = Speed(
            ratio=ratios(contest.speeds(each), contest.speeds(reference)),
            work=ratios(work[each.name], work["local"]) if "local" in work else None,
            lanes=link["tangents"]["bytes"] / tangent * first["config"]["batch_size"] / images
            if "tangents" in link
            else 0,
            bytes_back=sum(first["bytes_back_per_batch"]),
            weights_back=sum(first.get("weights_back_per_batch", [])),
            staleness=first["staleness"]["0"]["mean"],
        )
    return found


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, FrontierOptions())
    options.out = options.out or str(folder)
    setting = [*SETTING, *overrides]
    trainings = Trainings(folder / "accuracy", options, setting)

    def keys(name: str, rate: float | None) -> tuple[str, ...]:
        return (*options.keys(name), *([] if rate is None else [f"optim.lr={rate:g}"]))

    rates = best_rates(folder / "rates", options, setting, options.methods, keys) if options.rates else {}
    wanted = {name: keys(name, rates.get(name)) for name in options.methods}
    trainings.run_missing(wanted)
    rows = {name: FrontierRow(name, accuracies(trainings.summaries(name)), rates.get(name)) for name in wanted}
    costs = ""
    if options.rounds:
        timed = contestants(options)
        rounds = ContestOptions(split=options.split, repeats=options.rounds)
        contest = Contest(folder / "speed", rounds, [*timed_keys(setting), *options.net], timed)
        contest.run()
        rows |= {name: replace(rows[name], speed=each) for name, each in measured(contest, timed).items()}
        made = origin(summary for each in timed for summary in contest.summaries(each))
        costs = f"\n## Two processes\n\n{speed_table(list(rows.values()))}\n{made}\n"
    text = table(list(rows.values())) + costs
    print(text, end="")
    out = trainings.write("frontier", "Feedback that pays", arguments[1:], list(wanted), text)
    if options.rounds and find_spec("matplotlib") is not None:
        plot(list(rows.values()), out / "frontier.png")
    return 0
