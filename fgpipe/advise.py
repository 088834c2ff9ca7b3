"""The command `python -m fgpipe.advise`; see `fgpipe.study.race.advise`."""

from fgpipe.command import start

if __name__ == "__main__":
    start("fgpipe.study.race.advise")
