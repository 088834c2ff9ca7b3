"""The command: `python -m fgpipe.train` or `torchrun --nproc_per_node=N -m fgpipe.train`, with `key=value` overrides.

Exit codes: 0, done; 1, the run failed, or its results cannot be written; 2, bad input; 75, saved on SIGTERM and to be
resumed; 130, interrupted.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.train")

import sys
from collections.abc import Sequence
from typing import NoReturn

from omegaconf import OmegaConf

from fgpipe.cluster.allocator import keep_pages
from fgpipe.cluster.process import Place
from fgpipe.command import FAILED, command, conclude, leave, say
from fgpipe.config import CONFIGS, compose_config, known_keys
from fgpipe.config.arguments import split
from fgpipe.elastic.run import run_member
from fgpipe.errors import RunError, UserError, bad_value, one_line
from fgpipe.models.net import Net
from fgpipe.saving.checkpoint import CheckpointError
from fgpipe.saving.verdict import takes_keys
from fgpipe.trainers.saver import Preempted
from fgpipe.trainers.session import run

OF_BUILT_IN = ("model", "model.blocks", "model.width", "model.stem", "head", "head.name", "head.hidden")
"""Keys that change the built-in net alone."""
PREEMPTED = 75
"""Exit code: `EX_TEMPFAIL` of sysexits.h, try again later."""


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    return _train(arguments, None)


def program(defaults: Sequence[str] = (), net: Net | None = None) -> NoReturn:
    """Train as `python -m fgpipe.train` does, as the last line of a program, and exit: with one line for bad input, `--help`,
    and a code that a launcher understands (docs/guide/clusters.md).

    Args:
        defaults: keys before those of the command line. Values go on top of groups there too, whichever comes first.
        net: blocks and heads of your own; None builds the configuration's ResNet-18.
    """
    takes_keys(sys.argv[0])
    conclude(command(lambda arguments: _train([*defaults, *arguments], net)))


def _train(arguments: list[str], net: Net | None) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(usage(own_net=net is not None))
        return 0
    place = Place.from_environment()
    config = compose_config([argument for argument in arguments if argument != "--cfg"])
    if "--cfg" in arguments:
        print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
        return 0
    if net is not None:
        for argument in arguments:
            if split(argument)[0] in OF_BUILT_IN:
                raise UserError(f"{argument}: allowed: nothing, with a net of your own")
    keep_pages()
    try:
        if not config.elastic.on:
            run(config, net, restore=False)
        elif net is None:
            run_member(config)
        else:
            raise bad_value("elastic.block", config.elastic.block, "null with a net of your own")
    except RunError as error:
        if isinstance(error, CheckpointError) and not error.elsewhere and not config.elastic.on:
            say(f"rank {place.rank}: {one_line(error)}")  # the others are said already
        leave(FAILED)
    except Preempted as preempted:
        if place.rank == 0:
            say(one_line(preempted))
        if place.world_size > 1:
            leave(PREEMPTED)
        return PREEMPTED
    return 0


def usage(own_net: bool = False) -> str:
    """Text that `--help` prints."""
    left_out = {"profile", *(OF_BUILT_IN if own_net else ())}  # profiles are fgpipe.grid's
    groups = sorted(path for path in CONFIGS.iterdir() if path.is_dir() and path.name not in left_out)
    choices = [f"  {group.name}=" + " | ".join(sorted(file.stem for file in group.glob("*.yaml"))) for group in groups]
    keys = [f"  {key}" for key in known_keys() if key not in left_out]
    program = sys.argv[0] if own_net else "-m fgpipe.train"
    lead = [
        f"usage: [torchrun --nproc_per_node=N | python] {program} [--cfg] [key=value ...]",
        "--cfg prints the resolved configuration. docs/reference/keys.md says what each key means.",
    ]
    return "\n\n".join([*lead, "\n".join(["groups:", *choices]), "\n".join(["keys:", *keys])])
