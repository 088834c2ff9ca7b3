"""The command `python -m fgpipe.grid`; see `fgpipe.study.paper.grid`."""

from fgpipe.command import start

if __name__ == "__main__":
    start("fgpipe.study.paper.grid")
