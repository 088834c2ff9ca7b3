"""The command `python -m fgpipe.store HOST:PORT`: where the members of an elastic run find each other (docs/reference/elastic.md).

It holds no state of training, and may be killed and started again while they train. With `--check BLOCKS KEY=VALUE ...`
nothing is started: bad input of a run is said once, before each of its blocks would say it.

Exit codes: 0, ended by SIGTERM; 2, bad input; 130, interrupted.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.store")

from fgpipe.command import command
from fgpipe.config import RULES, check_world, compose_config
from fgpipe.elastic.store import serve
from fgpipe.errors import UserError, bad_value


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    if len(arguments) > 1 and arguments[0] == "--check":
        _check(*arguments[1:])
        return 0
    if len(arguments) != 1:
        raise UserError("usage: python -m fgpipe.store HOST:PORT, or --check BLOCKS KEY=VALUE ...")
    accepts, allowed = RULES["elastic.store"]
    if not accepts(arguments[0]):
        raise bad_value("HOST:PORT", arguments[0], allowed)
    serve(arguments[0])
    return 0


def _check(blocks: str, *overrides: str) -> None:
    config = compose_config([*overrides, "elastic.block=0"])
    check_world(config, 1)
    if blocks != str(config.blocks):
        raise bad_value("BLOCKS", blocks, f"{config.blocks}, as the net has (model.blocks)")
