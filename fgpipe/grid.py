"""The command `python -m fgpipe.grid`; see `fgpipe.study.grid`."""

import sys

from fgpipe.study.grid import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
