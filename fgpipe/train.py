"""The command: `python -m fgpipe.train` or `torchrun --nproc_per_node=N -m fgpipe.train`, with `key=value` overrides.

Exit codes: 0, done; 1, the run failed; 2, bad input; 75, saved on SIGTERM and to be resumed.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # what imports make stays, and looking for garbage in it takes a sixth of the start

import os
import sys
import time

from omegaconf import OmegaConf

from fgpipe.checkpoint import CheckpointError
from fgpipe.config import CONFIGS, compose_config, known_keys
from fgpipe.errors import UserError
from fgpipe.run import run
from fgpipe.runtime.feedback.messages import FeedbackError
from fgpipe.runtime.finite import NotFiniteError
from fgpipe.runtime.links.distributed import LinkError
from fgpipe.runtime.process import Place
from fgpipe.runtime.worker import Stalled
from fgpipe.saver import Preempted

PREEMPTED = 75
"""Exit code: `EX_TEMPFAIL` of sysexits.h, try again later."""

REPORT_BY_FIRST = 10.0
"""Seconds that other ranks leave the first one of their host to report bad input, before they end too."""


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(usage())
        return 0
    try:
        config = compose_config([argument for argument in arguments if argument != "--cfg"])
        if "--cfg" in arguments:
            print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
        else:
            run(config)
    except UserError as error:
        if error.alone or Place.from_environment().local_rank == 0:
            print(f"fgpipe: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(REPORT_BY_FIRST)  # torchrun ends the others as soon as the first has ended
        return 2
    except CheckpointError as error:
        print(f"fgpipe: rank {Place.from_environment().rank}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except (LinkError, FeedbackError, NotFiniteError, Stalled):
        sys.stderr.flush()
        os._exit(1)  # threads may wait for peers that are gone
    except Preempted as preempted:
        place = Place.from_environment()
        if place.rank == 0:
            print(f"fgpipe: {preempted}", file=sys.stderr, flush=True)
        if place.world_size > 1:
            os._exit(PREEMPTED)  # for the same reason
        return PREEMPTED
    return 0


def usage() -> str:
    """What `--help` prints."""
    groups = sorted(
        path for path in CONFIGS.iterdir() if path.is_dir() and path.name != "profile"
    )  # that is fgpipe.grid's
    choices = [f"  {group.name}=" + " | ".join(sorted(file.stem for file in group.glob("*.yaml"))) for group in groups]
    keys = "\n".join(f"  {key}" for key in known_keys())
    lead = "usage: [torchrun --nproc_per_node=N | python] -m fgpipe.train [--cfg] [key=value ...]"
    return (
        f"{lead}\n\n--cfg prints the resolved configuration.\n\ngroups:\n" + "\n".join(choices) + f"\n\nkeys:\n{keys}"
    )


if __name__ == "__main__":
    gc.freeze()  # nor is it looked at later, or at the end
    gc.enable()
    sys.exit(main(sys.argv[1:]))
