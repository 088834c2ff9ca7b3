"""The command `python -m fgpipe.report`; see `fgpipe.study.report`."""

from fgpipe.command import start

if __name__ == "__main__":
    start("fgpipe.study.report")
