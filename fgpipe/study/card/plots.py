"""Figures of the report, each drawn once and written twice: as SVG that takes the page's ink, and as PNG on white."""

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fgpipe.study.card.measured import Measurement, Values
from fgpipe.study.card.ranks import Ranks
from fgpipe.study.common.figure import GUESS_COLORS, HEAD_COLORS, INK
from fgpipe.study.paper.tables import Key, spelled

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType  # which the oldest matplotlib that will do has not

SPACES = ("activity", "weight")
SPACE_COLORS = {"weight": "#2f7ed8", "activity": "#d9822b", None: "#8a8f98"}
SHADES = {"local": 0.0, "local_subspace": 0.3, "ntk": 0.5, "fixed_ntk": -0.45}
"""Share of white in the colour of an auxiliary net that makes the guess, or of black below zero."""
STYLE: "dict[RcKeyType, Any]" = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fgpipe",
    "font.family": "sans-serif",
}


class Plot:
    """One figure: its name for files, its title and caption, and how it is drawn."""

    def __init__(
        self,
        name: str,
        title: str,
        caption: str,
        draw: Callable[[Figure], None],
        size: tuple[float, float] = (3.7, 3.1),
    ) -> None:
        """Args: size: in inches; a page of 390 pixels shows 3.7 inches at their natural size."""
        self.name, self.title, self.caption, self._draw, self._size = name, title, caption, draw, size
        self.wide = size[0] > 5

    def write(self, folder: Path) -> str:
        """Write `<name>.png` into the folder; returns the SVG."""
        with plt.rc_context(STYLE):
            figure = self.figure()
            figure.savefig(folder / f"{self.name}.png", dpi=200, facecolor="white")
            svg = io.StringIO()
            figure.savefig(
                svg, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
            )
            plt.close(figure)
        return self._inline(svg.getvalue())

    def figure(self) -> Figure:
        """Draw; the caller closes it."""
        figure = plt.figure(figsize=self._size, layout="constrained")
        self._draw(figure)
        return figure

    def _inline(self, text: str) -> str:
        """Turn the SVG into a part of a page: no prolog, no fixed size, ids of its own, and the page's ink."""
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{self.name}-", text).replace(INK, "currentColor")
        start, rest = text.split(">", 1)
        start = re.sub(r' (width|height)="[^"]*"', "", start)
        return f'{start} role="img" aria-label="{self.title}" style="max-width: {120 * self._size[0]:.0f}px">{rest}'


def plots(measurements: Sequence[Measurement], values: Values, published: Values) -> Iterator[Plot]:
    """Yield every figure that the measurements allow."""
    ranks = Ranks.of(values, published)
    if ranks.spearman is not None:
        yield _scatter(ranks)
    yield from _multiples(values, published)
    yield from _losses(measurements)
    yield from _by_depth(measurements)
    yield from _cosines(measurements)


def label(key: Key) -> str:
    """Label of a row of the paper's tables: guess, and auxiliary net if there is one."""
    return row_label(key.guess, key.aux)


def row_label(guess: str, aux: str | None) -> str:
    """Label of a row, as `label`."""
    return " ".join(word for word in (spelled(guess), aux) if word)


def _scatter(ranks: Ranks) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for guess, color in GUESS_COLORS.items():
            for blocks, marker in ((8, "o"), (16, "^")):
                own = [index for index, key in enumerate(ranks.keys) if (key.guess, key.blocks) == (guess, blocks)]
                x, y = ([values[index] for index in own] for values in (ranks.published, ranks.measured))
                if own:
                    axes.scatter(x, y, color=color, marker=marker, s=26, label=f"{spelled(guess)}, {blocks}")
        axes.set(xlabel="published accuracy, %", ylabel="measured accuracy, %")
        axes.legend(fontsize=6.5, frameon=False)

    caption = f"Spearman {ranks.shown} over {len(ranks.keys)} cells of tables 2 and 3, CIFAR-10."
    return Plot("scatter", "Measured against published", caption, draw)


def _multiples(values: Values, published: Values) -> Iterator[Plot]:
    """Yield the cells of each target: a panel for data set, blocks and width of which more than one cell is measured."""
    targets: dict[str, dict[tuple[str, int, str], list[Key]]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(values, key=_row_order):
        if key.guess != "end_to_end":
            targets[key.target][key.dataset, key.blocks, key.width].append(key)
    for target, groups in sorted(targets.items()):
        wanted = {group: keys for group, keys in sorted(groups.items()) if len(keys) > 1}
        if not wanted:
            continue
        rows = sorted({(each.guess, each.aux) for keys in wanted.values() for each in keys}, key=_row_place)
        across = min(3, len(wanted))
        down = -(-len(wanted) // across)
        size = max(3.7, 2.1 * across + 1.0), down * (0.4 + 0.17 * len(rows)) + 0.8
        caption = "Test accuracy, filled as measured, hollow as published."
        draw = partial(_draw_multiples, wanted, rows, across, values, published)
        yield Plot(f"groups-{target}", f"Cells, {target} target", caption, draw, size)


def _draw_multiples(
    groups: Mapping[tuple[str, int, str], Sequence[Key]],
    rows: Sequence[tuple[str, str | None]],
    across: int,
    values: Values,
    published: Values,
    figure: Figure,
) -> None:
    down = -(-len(groups) // across)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    for ((dataset, blocks, width), keys), panel in zip(groups.items(), panels, strict=False):
        for key in keys:
            at = rows.index((key.guess, key.aux)) + {None: 0.0, "weight": -0.16, "activity": 0.16}[key.space]
            for source, face in ((published, "none"), (values, SPACE_COLORS[key.space])):
                if key in source:
                    panel.plot(mean(source[key].values()), at, "o", ms=4, color=SPACE_COLORS[key.space], mfc=face)
        wide = f", width {width}" if width != "1" else ""
        panel.set_title(f"{spelled(dataset)}, {blocks} blocks{wide}", fontsize=7.5)
        panel.set_yticks(range(len(rows)), [row_label(*row) for row in rows], fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
        panel.grid(axis="x", color=INK, alpha=0.15, linewidth=0.5)
    for panel in list(panels):
        panel.set_axis_off()
    figure.supxlabel("test accuracy, %", fontsize=9)
    handles = [Line2D([], [], marker="o", ls="", ms=4, color=color) for color in SPACE_COLORS.values()]
    labels = [f"{space} space" if space else "either" for space in SPACE_COLORS]
    figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=7, frameon=False)


def _row_order(key: Key) -> tuple[int, str]:
    return _row_place((key.guess, key.aux))


def _row_place(row: tuple[str, str | None]) -> tuple[int, str]:
    guess, aux = row
    return list(GUESS_COLORS).index(guess), aux or ""


def _losses(measurements: Sequence[Measurement]) -> Iterator[Plot]:
    """Figure 3: the net's loss over time for a global target, weight space, MLP heads."""
    for blocks in (8, 16):
        runs = _first_seed(
            each for each in measurements
            if each.key[:4] == ("cifar10", blocks, "1", "global")
            and each.key.aux in (None, "mlp")
            and each.key.space in (None, "weight")
        )  # fmt: skip
        if len(runs) > 1:
            yield Plot(
                f"loss-{blocks}-blocks",
                f"Loss over time, {blocks} blocks",
                "The net's own loss, global target, weight space, MLP heads, CIFAR-10 (figure 3). "
                "Solid: training, dashed: test.",
                partial(_draw_losses, runs, blocks - 1),
            )


def _draw_losses(runs: Sequence[Measurement], block: int, figure: Figure) -> None:
    axes = figure.subplots()
    for each in runs:
        color, name = GUESS_COLORS[each.key.guess], spelled(each.key.guess)
        for phase, style in (("train", "-"), ("test", "--")):
            curve = each.curve(phase, block)
            axes.plot(range(1, len(curve) + 1), curve, style, color=color, label=name if phase == "train" else None)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7, frameon=False)


def _by_depth(measurements: Sequence[Measurement]) -> Iterator[Plot]:
    """Figure 2: the loss of each block's CNN head at the end."""
    for blocks in (8, 16):
        runs = _first_seed(
            each for each in measurements
            if each.key[:3] == ("cifar10", blocks, "1")
            and all(each.curve("train", j) for j in range(blocks))
            and each.config["head"]["name"] == "cnn"
            and _plotted(each.key)
        )  # fmt: skip
        if runs:
            yield Plot(
                f"depth-{blocks}-blocks",
                f"Loss by depth, {blocks} blocks",
                "Training loss of each block's CNN head in the last epoch, CIFAR-10 (figure 2); heads that the method "
                "does not use are trained beside the net without touching it. Solid: global target, dashed: local.",
                partial(_draw_depth, runs, blocks),
            )


def _plotted(key: Key) -> bool:
    return (
        key.guess in GUESS_COLORS
        and key.space in (None, "weight")
        and key.aux in (None, "cnn")
        and key.target != "intermediate"
    )


def _draw_depth(runs: Sequence[Measurement], blocks: int, figure: Figure) -> None:
    axes = figure.subplots()
    for each in runs:
        losses = [each.curve("train", block)[-1] for block in range(blocks)]
        style = "-" if each.key.target == "global" else "--"
        name = f"{spelled(each.key.guess)}, {each.key.target}"
        axes.plot(
            range(blocks), losses, style, color=GUESS_COLORS[each.key.guess], marker="o", markersize=3, label=name
        )
    axes.set(xlabel="block", ylabel="training loss of its head")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.legend(loc="outside upper center", ncols=2, fontsize=7, frameon=False)


def _cosines(measurements: Sequence[Measurement]) -> Iterator[Plot]:
    """Figures 4 and 5: per block, the cosine over time, and the loss of its head."""
    for blocks in (8, 16):
        for space in SPACES:
            runs = _first_seed(
                each for each in measurements
                if each.cosine and each.key[:4] == ("cifar10", blocks, "1", "global") and each.key.space == space
            )  # fmt: skip
            with_heads = [each for each in runs if any(each.curve("train", block) for block in range(blocks - 1))]
            size = (8.0, 4.4 if blocks == 8 else 8.0)
            if runs:
                yield Plot(
                    f"cosine-{blocks}-blocks-{space}",
                    f"Alignment, {blocks} blocks, {space} space",
                    "Cosine of guess and global target over training steps, by block, global target, CIFAR-10 "
                    "(figures 4 and 5). Of 10 observed steps or more: each, and a running mean over a fifth of them.",
                    partial(_draw_cosines, runs, blocks),
                    size,
                )
            if with_heads:
                yield Plot(
                    f"heads-{blocks}-blocks-{space}",
                    f"Losses of the heads, {blocks} blocks, {space} space",
                    "Loss of each block's head over epochs, in those of the same runs that train one. Solid: training, "
                    "dashed: test.",
                    partial(_draw_heads, with_heads, blocks),
                    size,
                )


def _panels(figure: Figure, blocks: int, x: str, y: str) -> tuple[list[Axes], Axes]:
    """Make one for each block but the last, and an empty one in the last's place."""
    *panels, free = figure.subplots(-(-blocks // 4), 4, sharex=True).flat
    for block, panel in enumerate(panels):
        panel.set_title(f"block {block}", fontsize=8)
        panel.tick_params(labelsize=7, labelbottom=block + 4 >= len(panels))
        panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    free.set_axis_off()
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    return panels, free


def _draw_cosines(runs: Sequence[Measurement], blocks: int, figure: Figure) -> None:
    panels, free = _panels(figure, blocks, "training step", "cosine")
    for block, panel in enumerate(panels):
        panel.axhline(0, color=INK, linewidth=0.6)
        for each in runs:
            steps, cosines = [step for step, _ in each.cosine], [line[block] for _, line in each.cosine]
            reach = len(cosines) // 10
            if reach:
                panel.plot(steps, cosines, color=color_of(each.key), linewidth=0.6, alpha=0.35)
            panel.plot(steps, smooth(cosines, reach), color=color_of(each.key), linewidth=1.2, label=label(each.key))
    free.legend(*panels[0].get_legend_handles_labels(), loc="center", fontsize=7, frameon=False)


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and up to `reach` neighbours on either side."""
    return [mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _draw_heads(runs: Sequence[Measurement], blocks: int, figure: Figure) -> None:
    panels, free = _panels(figure, blocks, "epoch", "loss")
    lines = {}
    for block, panel in enumerate(panels):
        for each in runs:
            for phase, style in (("train", "-"), ("test", "--")):
                curve = each.curve(phase, block)
                (line,) = panel.plot(range(1, len(curve) + 1), curve, style, color=color_of(each.key), linewidth=0.9)
                if curve and phase == "train":
                    lines[label(each.key)] = line
    free.legend(lines.values(), lines.keys(), loc="center", fontsize=7, frameon=False)


def color_of(key: Key) -> str:
    """Colour of guess and auxiliary net; no two that may be in one figure are the same."""
    if key.aux is None or key.guess not in SHADES:
        return GUESS_COLORS[key.guess]
    shade = SHADES[key.guess]
    red, green, blue = ((1 - abs(shade)) * part + max(shade, 0) for part in to_rgb(HEAD_COLORS[key.aux]))
    return to_hex((red, green, blue))


def _first_seed(measurements: Iterator[Measurement]) -> list[Measurement]:
    """Choose one run of each key, by row of the paper's tables."""
    runs: dict[Key, Measurement] = {}
    for each in sorted(measurements, key=lambda each: (_row_order(each.key), each.seed)):
        runs.setdefault(each.key, each)
    return list(runs.values())
