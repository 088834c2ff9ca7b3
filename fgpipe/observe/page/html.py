"""Pages: one file, which refers to nothing outside it."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; the parts are HTML."""
    style = (files("fgpipe.observe.page") / "style.css").read_text()
    return "\n".join([HEAD.format(title=escape(title), style=style), *filter(None, parts), "</body>\n</html>\n"])


def charts(figures: Iterable[str]) -> str:
    """Figures beside each other as far as there is room; nothing if there are none."""
    drawn = "\n".join(filter(None, figures))
    return f"<div class=charts>\n{drawn}\n</div>" if drawn else ""


def figures(numbers: Iterable[tuple[str, str]]) -> str:
    """Large numbers, each over its name."""
    shown = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in numbers)
    return f"<div class=figures>{shown}</div>" if shown else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table of text; the first of each row is its name."""
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(each)}</td>' for each in values)}</tr>\n"
        for name, *values in rows
    )
    kind = " class=numbers" * numbers
    return f"<div class=scroll><table{kind}><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and their values."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs)}</dl>"
