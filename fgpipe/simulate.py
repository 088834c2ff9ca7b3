"""The command `python -m fgpipe.simulate`; see `fgpipe.study.simulator.command`."""

import sys

from fgpipe.study.simulator.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
