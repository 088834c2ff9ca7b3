"""Words of prose in README and docs: python docs/words.py

Code blocks and tables are not prose. Exit code 1 if a page, or all together, is above its limit, or if a line of prose
is longer than 400 characters.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMITS = {"README.md": 700, "docs/guide": 600}
TOTAL = 12_000
LINE = 400


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("[gr]*/*.md"))]


def prose(text: str) -> Iterator[str]:
    """Yield the lines that are neither code nor table."""
    code = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.startswith("|"):
            yield line


def words(lines: list[str]) -> int:
    """Count the words: what has a letter or a digit in it, without the addresses of links."""
    return len(re.findall(r"\S*\w\S*", re.sub(r"\]\([^)]*\)", "] ", "\n".join(lines))))


def main() -> int:
    total, wrong = 0, []
    for page in pages():
        name, lines = str(page.relative_to(ROOT)), list(prose(page.read_text()))
        count = words(lines)
        total += count
        print(f"{count:6d}  {name}")
        limit = LIMITS.get(name, LIMITS.get(str(Path(name).parent), TOTAL))
        if count > limit:
            wrong.append(f"{name}: {count} words, at most {limit}")
        wrong += [f"{name}: a line of {len(line)} characters, at most {LINE}" for line in lines if len(line) > LINE]
    print(f"{total:6d}  in all, at most {TOTAL}")
    if total > TOTAL:
        wrong.append(f"{total} words in all, at most {TOTAL}")
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
