"""The verdict on a run that ended badly: `verdict.json` in its folder says why, and how it goes on (docs/reference/operations.md)."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fgpipe.saving import durable
from fgpipe.saving.checkpoint import CheckpointError, Checkpoints
from fgpipe.saving.outputs import unwritten

NAME = "verdict.json"
TRAIN = ["-m", "fgpipe.train"]
_programs_of_keys: set[str] = set()
"""The program whose arguments are settings of a run."""
NO_FILE = ("", "-", "-c")
"""Names of programs from standard input and from the command line."""


@dataclass(frozen=True)
class Verdict:
    """Content of `verdict.json`."""

    cause: str
    """The root cause, one line."""
    rank: int
    blocks: list[int]
    """Blocks at fault."""
    reported_by: int
    """The rank that wrote this."""
    last_batch: int | None
    """The last training batch that the reporting process began; None before the first."""
    last_checkpoint: str | None
    """The folder of the newest complete checkpoint of this run."""
    resume: str | None
    """The command that goes on, for a shell: of `fgpipe.train` with its arguments and `resume=auto`; of another program,
    whose arguments are its own, as it was. None where there is no such command: the program came from standard input,
    from `-c` or from a prompt."""
    note: str | None
    """Settings to be made in the program first, or why there is no command; None where the command is all."""


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
    try:
        checkpoints = Checkpoints(run)
        steps = checkpoints.steps()
        newest = str(checkpoints.folder(steps[-1])) if steps else None
        afresh = resumed not in (None, "auto") and not steps
        goes_on = resume_command(run, sys.argv, os.environ, afresh=afresh), note(run, resumed, afresh=afresh)
        verdict = Verdict(" ".join(cause.split()), rank, list(blocks), reported_by, last_batch, newest, *goes_on)
        written = durable.create(run / NAME, f"{json.dumps(asdict(verdict), indent=2)}\n".encode())
    except (OSError, CheckpointError) as error:
        why = unwritten(run / NAME, error) if isinstance(error, OSError) else error
        print(f"fgpipe: {why}", file=sys.stderr, flush=True)
        return False
    if written:
        print(
            f"fgpipe: {'' if said else f'{verdict.cause}; '}{run / NAME} says why, and how to go on",
            file=sys.stderr,
            flush=True,
        )
    return written


def retire(run: Path) -> None:
    """A new job begins in the folder: the last one's verdict becomes `verdict-1.json`, or gets a number above all others.

    Raises:
        OSError: it cannot be renamed.
    """
    if (run / NAME).exists():
        numbers = (path.stem.partition("-")[2] for path in run.glob("verdict-*.json"))
        number = 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
        (run / NAME).rename(run / f"verdict-{number}.json")


def takes_keys(name: str) -> None:
    """Note that a program's arguments are keys of a run, as those of `fgpipe.train` are.

    Args: name: that the process has, as in `sys.argv`.
    """
    _programs_of_keys.add(name)


def resume_command(run: Path, arguments: Sequence[str], environment: Mapping[str, str], *, afresh: bool) -> str | None:
    """The command of this process again, with `resume=auto` where its arguments are settings of a run; see `Verdict`.

    Args:
        arguments: of the process, its name first, as in `sys.argv`.
        environment: torchrun's variables, if it started this process.
        afresh: the run went on from another one's checkpoint and has none of its own yet, so that it starts from that
            one again, in a folder of a new name.
    """
    name, *kept = arguments
    if (program := _program(name)) is None:
        return None
    if program == TRAIN or name in _programs_of_keys:
        kept = [argument for argument in kept if afresh or not argument.startswith("resume=")]
        if afresh:
            kept = [argument for argument in kept if not argument.startswith("run_dir=")]
        else:
            kept = [argument for argument in kept if argument not in ("run_dir=", "run_dir=null")]
            named = any(argument.startswith("run_dir=") for argument in kept)
            kept += [*([] if named else [f"run_dir={run}"]), "resume=auto"]
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join([*_launcher(environment), *program, *kept])}"


def note(run: Path, resumed: str | None, *, afresh: bool) -> str | None:
    """Settings to be made in this process's program, so that it goes on with the run; None if there are none.

    Args: resumed: the run's `resume` key.
    """
    settings = "another run_dir, or none" if afresh else f"run_dir={run} resume=auto"
    if (program := _program(sys.argv[0])) is None:
        return f"no command starts a program from standard input, -c or a prompt again; it goes on with {settings}"
    if program == TRAIN or sys.argv[0] in _programs_of_keys or resumed == "auto":
        return None
    return f"the program goes on with {settings}, which must be set in it first"


def _program(name: str) -> list[str] | None:
    """Python's arguments for this process's program; None if it came from standard input, from `-c` or from a prompt.

    Args: name: that the process has, as in `sys.argv`.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":  # which is that of a folder or a zip file
        return ["-m", spec.name]
    return [name] if hasattr(main, "__file__") and name not in NO_FILE else None


def _launcher(environment: Mapping[str, str]) -> list[str]:
    if "WORLD_SIZE" not in environment:
        return ["python"]
    local, hosts = environment["LOCAL_WORLD_SIZE"], int(environment.get("GROUP_WORLD_SIZE") or 1)
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
