"""The command `python -m fgpipe.report`; see `fgpipe.study.card.report`."""

from fgpipe.command import start

if __name__ == "__main__":
    start("fgpipe.study.card.report")
