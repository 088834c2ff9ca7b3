"""The command `python -m fgpipe.simulate`; see `fgpipe.study.simulator.command`."""

from fgpipe.command import start

if __name__ == "__main__":
    start("fgpipe.study.simulator.command")
