"""The command `python -m fgpipe.report`; see `fgpipe.study.report`."""

import sys

EXTRA = ("matplotlib", "scipy", "jinja2")

if __name__ == "__main__":
    try:
        from fgpipe.study.report import main
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        print(f"fgpipe: {error.name} is not installed; the report wants pip install 'fgpipe[report]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1:]))
