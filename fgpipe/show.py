"""The command `python -m fgpipe.show RUN [RUN ...] [out=FILE]`: a page about a run, or about several beside each other.

RUN: the folder of a run, also of one that goes on or ended badly, or a folder of such folders. FILE: where the page is
written; RUN/report.html for one run, comparison.html here for several. A finished run has written its own.

Exit codes: 0, done; 1, the page cannot be written; 2, bad input; 130, interrupted.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.show")

from pathlib import Path

from fgpipe.command import command
from fgpipe.errors import UserError
from fgpipe.observe.page import comparison, run
from fgpipe.observe.page.folder import FolderContent
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_file, written


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    given = [Path(each) for each in arguments if not each.startswith("out=")]
    if not given:
        raise UserError("usage: python -m fgpipe.show RUN [RUN ...] [out=FILE]")
    folders = [folder for each in given for folder in FolderContent.within(each)]
    runs = [FolderContent.read(each) for each in folders]
    alone = len(runs) == 1
    named = [Path(each.removeprefix("out=")) for each in arguments if each.startswith("out=")]
    file = named[-1] if named else folders[0] / run.NAME if alone else Path(comparison.NAME)
    check_file("out", file)
    page = run.render(runs[0]) if alone else comparison.render(runs, file.parent)
    with written(file):
        durable.write(file, page.encode())
    print(f"see {file}")
    return 0
