"""The command `python -m fgpipe.report`; see `fgpipe.study.report`."""

import sys

from fgpipe.study.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
