"""Runs written by hand, and pages as a browser sees them."""

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CONFIG = {
    "model": {"blocks": 2},
    "data": {"name": "digits"},
    "guess": {"name": "local"},
    "epochs": 2,
    "space": "weight",
}
LOSSES = {"train": [[2.0, 2.5], [1.0, 0.5]], "test": [[40.0, 30.0], [3.0, 0.25]]}
"""Phase -> epoch -> block."""
ACCURACIES = {"train": [[0.5, 0.25], [0.75, 0.875]], "test": [[0.125, 0.25], [0.625, 0.9375]]}
SECONDS = [1.5, 2.5]
SUMMARY: dict[str, Any] = {
    "test_accuracy": 0.9375, "images_per_second": 123.4, "world_size": 2, "machine": "a machine", "commit": "abc",
    "staleness": {"0": {"min": 0.0, "mean": 0.75, "max": 1.0}, "1": {"min": 0.0, "mean": 0.0, "max": 0.0}},
    "bytes": {
        "0->1": {"activations": {"bytes": 3_000_000, "messages": 3}, "tangents": {"bytes": 1_000_000, "messages": 2}},
        "1->0": {"feedback": {"bytes": 200, "messages": 2}},
    },
    "bytes_back_per_batch": [100.0, 0.0],
}  # fmt: skip


def lines() -> list[dict[str, Any]]:
    """The epochs as `metrics.jsonl` has them."""
    return [
        {"epoch": k, "train_seconds": SECONDS[k]}
        | {
            phase: {
                str(j): {"loss": LOSSES[phase][k][j], "accuracy": ACCURACIES[phase][k][j], "samples": 16}
                for j in (0, 1)
            }
            for phase in ("train", "test")
        }
        for k in (0, 1)
    ]


def write_run(folder: Path, config: Mapping[str, Any] = CONFIG, summary: Mapping[str, Any] | None = SUMMARY) -> Path:
    """A run's folder; without a summary, one that is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML too
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines()))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps({"config": config, "epochs": lines(), **summary}))
    return folder


class Page(HTMLParser):
    """Elements and texts of a page.

    Attributes:
        elements: tag, attributes, and the figure's title that it is under.
        texts: text of each element, whitespace joined, with its tag and the figure's title.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], str]] = []
        self.texts: list[tuple[str, dict[str, str], str, str]] = []
        self._open: list[tuple[str, dict[str, str]]] = []
        self._title = ""
        self.feed(file.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self._title = "" if tag == "figure" else self._title
        self.elements.append((tag, attributes, self._title))
        self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass
        self._title = "" if tag == "figure" else self._title

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            tag, attributes = self._open[-1]
            self._title = data if tag == "h3" else self._title
            self.texts.append((tag, attributes, " ".join(data.split()), self._title))

    @property
    def text(self) -> str:
        """All that is read."""
        return " ".join(text for tag, _, text, _ in self.texts if tag not in ("style", "title"))

    def rows(self) -> list[list[str]]:
        """Cells of each row of all tables."""
        found: list[list[str]] = []
        for tag, _, text, _ in self.texts:
            if tag == "th":
                found.append([text])
            elif tag == "td":
                found[-1].append(text)
        return found

    def titles(self, figure: str) -> list[str]:
        """What the marks of a figure say."""
        return [text for tag, _, text, title in self.texts if tag == "title" and title == figure]

    def dots(self, figure: str) -> list[tuple[float, float]]:
        """Where the dots of a figure are, in pixels."""
        return [
            (float(a["cx"]), float(a["cy"])) for tag, a, title in self.elements if tag == "circle" and title == figure
        ]

    def ticks(self, figure: str, anchor: str) -> dict[float, tuple[float, float]]:
        """Value -> where it stands, of the vertical (`end`) or horizontal (`middle`) axis of a figure."""
        return {
            float(text): (float(a["x"]), float(a["y"]))
            for tag, a, text, title in self.texts
            if tag == "text" and title == figure and a.get("text-anchor") == anchor and a.get("class") != "unit"
        }
