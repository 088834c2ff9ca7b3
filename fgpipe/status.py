"""The command `python -m fgpipe.status RUN [--stop | --assemble] [--store HOST:PORT]`: an elastic run from outside.

Without an option: who is alive, how fast, how far behind, and what was lost. `--stop` asks all blocks to save and leave.
`--assemble` makes an ordinary checkpoint of their newest states, to export or to resume from (docs/reference/elastic.md).

Exit codes: 0, done; 1, the store does not answer, or blocks have not left; 2, bad input; 130, interrupted.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.status")

from pathlib import Path

from fgpipe.command import FAILED, command, say
from fgpipe.config.rules import RULES
from fgpipe.elastic.assemble import assemble
from fgpipe.elastic.places import Places
from fgpipe.elastic.status import Status
from fgpipe.errors import RunError, UserError, bad_value, one_line, reason

DEADLINE = 60.0
"""Seconds that all blocks have to leave."""
USAGE = "usage: python -m fgpipe.status RUN [--stop | --assemble] [--store HOST:PORT]"


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    rest, store = list(arguments), None
    if "--store" in rest[:-1]:
        at = rest.index("--store")
        _, store = rest[at : at + 2]
        del rest[at : at + 2]
    options = [argument for argument in rest if argument.startswith("--")]
    runs = [argument for argument in rest if not argument.startswith("--")]
    if len(runs) != 1 or len(options) > 1 or not {"--stop", "--assemble"}.issuperset(options):
        raise UserError(USAGE)
    if store is not None and not RULES["elastic.store"][0](store):
        raise bad_value("--store", store, RULES["elastic.store"][1])
    places = Places(Path(runs[0]))
    try:
        if options == ["--assemble"]:
            manifest = assemble(places)
            print(f"{places.run}: a checkpoint of step {manifest.step}")
        elif options == ["--stop"]:
            if left := Status(places, store).stop(DEADLINE):
                say(f"block {', '.join(map(str, left))} did not leave within {DEADLINE:g} s")
                return FAILED
        else:
            print(Status(places, store).table())
    except RunError as error:
        say(one_line(error))
        return FAILED
    except OSError as error:
        raise bad_value("RUN", places.run, f"a folder whose files can be read: {reason(error)}") from error
    return 0
