"""The command `python -m fgpipe.bench`; see `fgpipe.study.bench.command`."""

import sys

from fgpipe.study.bench.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
