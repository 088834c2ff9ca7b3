"""Resumption of a run: an unfinished run in its own folder, or another run's checkpoint (docs/reference/checkpoints.md)."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fgpipe.config import Config
from fgpipe.errors import UserError, bad_value, one_line
from fgpipe.saving import claim
from fgpipe.saving.checkpoint import CheckpointError, Checkpoints, Manifest
from fgpipe.saving.outputs import needed

FREE = {
    "run_dir", "resume", "device", "threads", "partition", "placement", "replicas", "interface", "deadline", "data.root", "observe.tensorboard",
    "checkpoint.every_minutes", "checkpoint.keep", "link.rate", "link.rtt", "link.between",
    "elastic.block", "elastic.store",
}  # fmt: skip
"""Keys that a run may be resumed with another value of: they say where and how fast it runs, not what it computes."""


def check_run_dir(config: Config) -> dict[str, Any] | None:
    """Check that a run may write into its `run_dir`; every process asks before any of them writes.

    Returns:
        The summary of the very run that is asked for, if `resume=auto` finds it finished; None if there is work to do.

    Raises:
        UserError: the folder holds something else.
    """
    if config.run_dir is None:
        return None
    path = Path(config.run_dir)
    with needed("run_dir", path):
        if not path.exists() or (path.is_dir() and claim.is_free(path)):
            return None
    if config.resume != "auto":
        hint = "; resume=auto goes on with an unfinished run" if (path / "config.yaml").exists() else ""
        raise bad_value("run_dir", path, f"a folder that does not exist yet or is empty{hint}")
    if not (path / "config.yaml").exists():
        raise bad_value(
            "run_dir", path, "with resume=auto: an unfinished run's folder, or one that does not exist yet or is empty"
        )
    try:
        summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise bad_value("run_dir", path, f"a folder whose summary.json can be read ({one_line(error)})") from error
    if not isinstance(summary, dict) or not {"config", "test_accuracy"} <= summary.keys():
        raise bad_value("run_dir", path, "a folder whose summary.json is that of a run")
    differing = list(differences(summary["config"], config, free=FREE))
    if differing:
        raise bad_value("run_dir", path, f"another folder, as the run in it is finished, with {', '.join(differing)}")
    return summary


def source(config: Config) -> Path | None:
    """The run folder whose checkpoints are resumed from; None for a fresh start."""
    where = config.run_dir if config.resume == "auto" else config.resume
    return Path(where) if config.resume is not None and where is not None else None


def after_interrupt(run: Path) -> str:
    """Say what of an interrupted run is saved."""
    try:
        steps = Checkpoints(run).steps()
    except (OSError, CheckpointError):
        steps = []
    if not steps:
        return "nothing is saved (checkpoint.every_steps, checkpoint.every_minutes)"
    return f"saved up to batch {steps[-1]}: run_dir={run} resume=auto goes on"


def choose(config: Config, train_batches: int) -> Manifest | None:
    """The checkpoint to go on from, every file of it verified; None to start afresh.

    Args:
        train_batches: of an epoch.

    Raises:
        UserError: there is none where one must be, all are damaged, or it is of another configuration.
    """
    run = source(config)
    if run is None:
        return None
    shown = f"resume={config.resume}"
    try:
        manifest = Checkpoints(run).newest(
            lambda line: print(f"fgpipe: passed over: {line}", file=sys.stderr, flush=True)
        )
    except CheckpointError as error:
        raise UserError(f"{shown}: no complete checkpoint is left: {error}") from error
    if manifest is None:
        if config.resume == "auto":
            return None
        raise UserError(f"{shown}: allowed: auto, or a run's folder with a complete checkpoint in it")
    free = FREE | ({"epochs"} if config.optim.schedule != "one_cycle" else set())
    free |= {"checkpoint.every_steps"} if config.window == 1 else set()
    differing = list(differences(manifest.config, config, free))
    if differing:
        raise UserError(f"{shown}: its run has {', '.join(differing)}; allowed to differ: {', '.join(sorted(free))}")
    if manifest.step > config.epochs * train_batches:
        raise bad_value(
            "epochs",
            config.epochs,
            f"at least {manifest.epoch + (manifest.batch > 0)}, which {manifest.step} steps of {run} reach",
        )
    if manifest.step == config.epochs * train_batches and not manifest.epochs:
        raise UserError(
            f"{shown}: nothing is left to train; its elastic blocks, started again, test and write the results"
        )
    if manifest.step != manifest.epoch * train_batches + manifest.batch:
        raise UserError(f"{shown}: its epochs have another number of batches than the {train_batches} of these data")
    return manifest


def differences(saved: Mapping[str, Any], config: Config, free: set[str]) -> Iterator[str]:
    """`key=value (here value)` of each key that differs and is not in `free`; a missing one has no value."""
    there, here = dict(flat(saved)), dict(flat(json.loads(json.dumps(asdict(config)))))
    for key in sorted(there.keys() | here.keys()):
        if key not in free and there.get(key, "nothing") != here.get(key, "nothing"):
            yield f"{key}={there.get(key, 'nothing')} (here {here.get(key, 'nothing')})"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a configuration."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
