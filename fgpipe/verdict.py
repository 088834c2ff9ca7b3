"""The verdict on a run that ended badly: `verdict.json` in its folder says why, and how it goes on (docs/operations.md)."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fgpipe import durable
from fgpipe.checkpoint import Checkpoints

NAME = "verdict.json"


@dataclass(frozen=True)
class Verdict:
    """What `verdict.json` holds."""

    cause: str
    """The root cause, one line."""
    rank: int
    blocks: list[int]
    """At fault."""
    reported_by: int
    """The rank that wrote this."""
    last_batch: int | None
    """The last training batch that the reporting process began; None before the first."""
    last_checkpoint: str | None
    """The folder of the newest complete checkpoint of this run."""
    resume: str
    """The command that goes on, for a shell."""


def write(
    run: Path,
    cause: str,
    rank: int,
    blocks: Sequence[int],
    *,
    reported_by: int,
    last_batch: int | None,
    resumed: str | None,
    said: bool = False,
) -> bool:
    """Write the verdict if there is none yet; of all processes of a job the first one does.

    Args:
        run: the folder; without a run's configuration in it nothing is written, as it could not be resumed.
        resumed: the run's `resume` key.
        said: this process has named the cause on stderr.

    Returns:
        Whether this process wrote it.
    """
    if not (run / "config.yaml").exists():
        return False
    checkpoints = Checkpoints(run)
    steps = checkpoints.steps()
    command = resume_command(run, sys.argv[1:], os.environ, afresh=resumed not in (None, "auto") and not steps)
    newest = str(checkpoints.folder(steps[-1])) if steps else None
    verdict = Verdict(" ".join(cause.split()), rank, list(blocks), reported_by, last_batch, newest, command)
    try:
        written = durable.create(run / NAME, f"{json.dumps(asdict(verdict), indent=2)}\n".encode())
    except OSError as error:
        print(f"fgpipe: {run / NAME} cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        return False
    if written:
        print(
            f"fgpipe: {'' if said else f'{verdict.cause}; '}{run / NAME} says why, and how to go on",
            file=sys.stderr,
            flush=True,
        )
    return written


def retire(run: Path) -> None:
    """A new job begins in the folder: the last one's verdict becomes `verdict-1.json`, or the next free number."""
    if (run / NAME).exists():
        number = 1 + sum(1 for _ in run.glob("verdict-*.json"))
        (run / NAME).rename(run / f"verdict-{number}.json")


def resume_command(run: Path, arguments: Sequence[str], environment: Mapping[str, str], *, afresh: bool) -> str:
    """The command of this process again, with `resume=auto`.

    Args:
        arguments: of the command, without its name.
        environment: torchrun's variables, if it started this process.
        afresh: the run went on from another one's checkpoint and has none of its own yet, so that it starts from that
            one again, in a folder of a new name.
    """
    kept = [argument for argument in arguments if afresh or not argument.startswith("resume=")]
    if afresh:
        kept = [argument for argument in kept if not argument.startswith("run_dir=")]
    else:
        named = any(argument.startswith("run_dir=") for argument in kept)
        kept += [*([] if named else [f"run_dir={run}"]), "resume=auto"]
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec is not None else [sys.argv[0]]
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join([*_launcher(environment), *program, *kept])}"


def _launcher(environment: Mapping[str, str]) -> list[str]:
    if "WORLD_SIZE" not in environment:
        return ["python"]
    local, hosts = environment["LOCAL_WORLD_SIZE"], int(environment.get("GROUP_WORLD_SIZE", 1))
    if hosts == 1:
        meet = ["--standalone"]
    else:
        meet = [f"--nnodes={hosts}", "--rdzv_backend=c10d", f"--rdzv_endpoint={environment['MASTER_ADDR']}"]
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0")
    return [
        "torchrun",
        *meet,
        f"--nproc_per_node={local}",
        *([f"--max-restarts={restarts}"] if restarts != "0" else []),
    ]
