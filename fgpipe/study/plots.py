"""The report's figures. Each is drawn once and written twice: as SVG that takes the page's ink, and as PNG on white."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from fgpipe.study.measured import Measurement, Values  # noqa: E402
from fgpipe.study.paper import Key, spelled  # noqa: E402
from fgpipe.study.ranks import Ranks  # noqa: E402

INK = "#2b2f36"
"""Of text and axes; `currentColor` in the SVG, so that the page's scheme decides."""
GUESS_COLORS = {
    "end_to_end": "#8a8f98",
    "local": "#2f7ed8",
    "ntk": "#d9822b",
    "fixed_ntk": "#b5893a",
    "gaussian": "#c2447f",
    "rademacher": "#8e5cc9",
    "local_subspace": "#2a9d8f",
}
AUX_COLORS = {"cnn": "#2f7ed8", "mlp": "#d9822b", "linear": "#2a9d8f", "predsim": "#8e5cc9"}
STYLE = {
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
            figure = plt.figure(figsize=self._size, layout="constrained")
            self._draw(figure)
            figure.savefig(folder / f"{self.name}.png", dpi=200, facecolor="white")
            svg = io.StringIO()
            figure.savefig(
                svg, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
            )
            plt.close(figure)
        return self._inline(svg.getvalue())

    def _inline(self, text: str) -> str:
        """The SVG as a part of a page: no prolog, no fixed size, ids of its own, and the page's ink."""
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{self.name}-", text).replace(INK, "currentColor")
        start, rest = text.split(">", 1)
        start = re.sub(r' (width|height)="[^"]*"', "", start)
        return f'{start} role="img" aria-label="{self.title}">{rest}'


def plots(measurements: Sequence[Measurement], values: Values, published: Values) -> Iterator[Plot]:
    """Every figure that the measurements allow."""
    ranks = Ranks.of(values, published)
    if ranks.spearman is not None:
        yield _scatter(ranks)
    for blocks, table in ((8, 3), (16, 2)):
        keys = [key for key in values if key in set(ranks.keys) or key.guess in ("gaussian", "rademacher")]
        keys = [key for key in keys if key[:4] == ("cifar10", blocks, "1", "global") and key.space is not None]
        if keys:
            yield _heat_map(blocks, table, keys, values, published)
    yield from _losses(measurements)
    yield from _by_depth(measurements)
    yield from _cosines(measurements)


def label(key: Key) -> str:
    """A row of the paper's tables: guess, and auxiliary net if there is one."""
    return " ".join(word for word in (spelled(key.guess), key.aux) if word)


def _scatter(ranks: Ranks) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for guess, color in GUESS_COLORS.items():
            for blocks, marker in ((8, "o"), (16, "^")):
                points = [
                    (b, a)
                    for key, a, b in zip(ranks.keys, ranks.measured, ranks.published, strict=True)
                    if (key.guess, key.blocks) == (guess, blocks)
                ]
                if points:
                    axes.scatter(
                        *zip(*points), color=color, marker=marker, s=26, label=f"{spelled(guess)}, {blocks}"
                    )
        axes.set(xlabel="published accuracy, %", ylabel="measured accuracy, %")
        axes.legend(fontsize=6.5, frameon=False)

    caption = f"Spearman {ranks.shown} over {len(ranks.keys)} cells of tables 2 and 3, CIFAR-10."
    return Plot("scatter", "Measured against published", caption, draw)


def _heat_map(blocks: int, table: int, keys: Sequence[Key], values: Values, published: Values) -> Plot:
    rows = list(dict.fromkeys((key.guess, key.aux) for key in sorted(keys, key=_row_order)))
    by_place = {(key.guess, key.aux, key.space): key for key in keys}

    def draw(figure: Figure) -> None:
        for axes, source, title in zip(
            figure.subplots(1, 2, sharey=True), (values, published), ("measured", "published"), strict=True
        ):
            cells = [[by_place.get((*row, space)) for space in ("activity", "weight")] for row in rows]
            numbers = [
                [mean(source[key].values()) if key in source else float("nan") for key in line] for line in cells
            ]
            top = max([10.1, *(number for line in numbers for number in line if number == number)])
            axes.pcolormesh(range(-1, 2), range(len(rows) + 1), numbers, cmap="viridis", vmin=10, vmax=top)
            for i, line in enumerate(numbers):
                for k, number in enumerate(line):
                    missing = number != number
                    color = INK if missing else "white" if number < 10 + 0.65 * (top - 10) else "black"
                    axes.text(
                        k - 0.5,
                        i + 0.5,
                        "–" if missing else f"{number:.1f}",
                        ha="center",
                        va="center",
                        color=color,
                        fontsize=8,
                    )
            axes.set_xticks((-0.5, 0.5), ("activity", "weight"))
            names = [label(by_place.get((*row, "weight")) or by_place[(*row, "activity")]) for row in rows]
            axes.set_yticks([i + 0.5 for i in range(len(rows))], names)
            axes.set_ylim(len(rows), 0)
            axes.set_title(title, fontsize=9)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)

    caption = f"Test accuracy in percent, colours by panel. Table {table}: global target, CIFAR-10."
    return Plot(f"heat-{blocks}-blocks", f"Guesses and spaces, {blocks} blocks", caption, draw)


def _row_order(key: Key) -> tuple[int, str]:
    return list(GUESS_COLORS).index(key.guess), key.aux or ""


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
                lambda figure, runs=runs, blocks=blocks: _draw_losses(figure.subplots(), runs, blocks - 1),
            )


def _draw_losses(axes: Axes, runs: Sequence[Measurement], block: int) -> None:
    for each in runs:
        color, name = GUESS_COLORS[each.key.guess], spelled(each.key.guess)
        for phase, style in (("train", "-"), ("test", "--")):
            curve = each.curve(phase, block)
            axes.plot(range(1, len(curve) + 1), curve, style, color=color, label=name if phase == "train" else None)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7, frameon=False)


def _by_depth(measurements: Sequence[Measurement]) -> Iterator[Plot]:
    """Figure 2: the loss of each block's head at the end."""
    for blocks in (8, 16):
        runs = _first_seed(
            each for each in measurements
            if each.key[:3] == ("cifar10", blocks, "1")
            and all(each.curve("train", j) for j in range(blocks))
            and _plotted(each.key)
        )  # fmt: skip
        if runs:
            yield Plot(
                f"depth-{blocks}-blocks",
                f"Loss by depth, {blocks} blocks",
                "Training loss of each block's head in the last epoch, CIFAR-10 (figure 2); heads that the method does "
                "not use are trained beside the net without touching it. Solid: global target, dashed: local.",
                lambda figure, runs=runs, blocks=blocks: _draw_depth(figure.subplots(), runs, blocks),
            )


def _plotted(key: Key) -> bool:
    return (
        key.guess in GUESS_COLORS
        and key.space in (None, "weight")
        and key.aux in (None, "cnn")
        and key.target != "intermediate"
    )


def _draw_depth(axes: Axes, runs: Sequence[Measurement], blocks: int) -> None:
    for each in runs:
        losses = [each.curve("train", block)[-1] for block in range(blocks)]
        style = "-" if each.key.target == "global" else "--"
        name = f"{spelled(each.key.guess)}, {each.key.target}"
        axes.plot(
            range(blocks), losses, style, color=GUESS_COLORS[each.key.guess], marker="o", markersize=3, label=name
        )
    axes.set(xlabel="block", ylabel="training loss of its head")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7, frameon=False)


def _cosines(measurements: Sequence[Measurement]) -> Iterator[Plot]:
    """Figures 4 and 5: per block, the cosine over time, and the loss of its head."""
    for blocks in (8, 16):
        for space in ("weight", "activity"):
            runs = _first_seed(
                each for each in measurements if each.cosine and each.key.blocks == blocks and each.key.space == space
            )
            if runs:
                yield Plot(
                    f"cosine-{blocks}-blocks-{space}",
                    f"Alignment, {blocks} blocks, {space} space",
                    "Cosine of guess and global target over training steps, by block (figures 4 and 5): each batch, "
                    "and a running mean.",
                    lambda figure, runs=runs, blocks=blocks: _draw_cosines(figure, runs, blocks),
                    size=(8.0, 4.4 if blocks == 8 else 8.0),
                )
                yield Plot(
                    f"heads-{blocks}-blocks-{space}",
                    f"Losses of the heads, {blocks} blocks, {space} space",
                    "Loss of each block's head over epochs, in the same runs. Solid: training, dashed: test.",
                    lambda figure, runs=runs, blocks=blocks: _draw_heads(figure, runs, blocks),
                    size=(8.0, 4.4 if blocks == 8 else 8.0),
                )


def _panels(figure: Figure, blocks: int) -> list[Axes]:
    panels = list(figure.subplots(-(-(blocks - 1) // 4), 4, sharex=True).flat)
    for panel in panels[blocks - 1 :]:
        panel.set_visible(False)
    for block, panel in enumerate(panels[: blocks - 1]):
        panel.set_title(f"block {block}", fontsize=8)
    return panels[: blocks - 1]


def _draw_cosines(figure: Figure, runs: Sequence[Measurement], blocks: int) -> None:
    panels = _panels(figure, blocks)
    for block, panel in enumerate(panels):
        panel.axhline(0, color=INK, linewidth=0.6)
        for each in runs:
            steps = [step for step, _ in each.cosine]
            cosines = [line[block] for _, line in each.cosine]
            panel.plot(steps, cosines, color=_color(each.key), linewidth=0.6, alpha=0.35)
            panel.plot(steps, smooth(cosines), color=_color(each.key), linewidth=1.3, label=label(each.key))
    _finish(figure, panels, "training step")
    figure.supylabel("cosine", fontsize=9)


def _finish(figure: Figure, panels: Sequence[Axes], x: str) -> None:
    """One legend, in the place of the block that has no panel."""
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="lower right",
        bbox_to_anchor=(0.97, 0.12),
        fontsize=8,
        frameon=False,
    )
    figure.supxlabel(x, fontsize=9)
    for panel in panels:
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def smooth(values: Sequence[float], reach: int = 5) -> list[float]:
    """The mean of each value and up to `reach` neighbours on either side."""
    return [mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _draw_heads(figure: Figure, runs: Sequence[Measurement], blocks: int) -> None:
    panels = _panels(figure, blocks)
    for block, panel in enumerate(panels):
        for each in runs:
            for phase, style in (("train", "-"), ("test", "--")):
                curve = each.curve(phase, block)
                name = label(each.key) if phase == "train" else None
                panel.plot(range(1, len(curve) + 1), curve, style, color=_color(each.key), linewidth=0.9, label=name)
    _finish(figure, panels, "epoch")
    figure.supylabel("loss", fontsize=9)


def _color(key: Key) -> str:
    return AUX_COLORS[key.aux] if key.guess == "local" and key.aux is not None else GUESS_COLORS[key.guess]


def _first_seed(measurements: Iterator[Measurement]) -> list[Measurement]:
    """One run of each key, by row of the paper's tables."""
    runs: dict[Key, Measurement] = {}
    for each in sorted(measurements, key=lambda each: (_row_order(each.key), each.seed)):
        runs.setdefault(each.key, each)
    return list(runs.values())
