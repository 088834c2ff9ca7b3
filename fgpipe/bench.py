"""The command `python -m fgpipe.bench`; see `fgpipe.study.bench.command`."""

from fgpipe.command import start

if __name__ == "__main__":
    start("fgpipe.study.bench.command")
