"""Values that a run of elastic blocks cannot have, and which block a process is."""

import os
import re
from collections.abc import Mapping
from importlib import import_module

from fgpipe.config.schema import Config, ElasticConfig
from fgpipe.errors import bad_value

VARIABLES = ("FGPIPE_BLOCK", "JOB_COMPLETION_INDEX", "SLURM_PROCID")
"""Of the environment, where `elastic.block=auto` looks: a user's own, Kubernetes's for an indexed job, Slurm's."""


def check_elastic(config: Config) -> None:
    """Reject what has no meaning where each block is a job of its own.

    Raises:
        UserError: with the key, the value and what is allowed.
    """
    elastic, off = config.elastic, ElasticConfig()
    if not elastic.on:
        for key in ("store", "fallback"):
            if (value := getattr(elastic, key)) != getattr(off, key):
                raise bad_value(f"elastic.{key}", value, f"{getattr(off, key)} unless elastic.block is given")
        return
    if elastic.block != "auto" and elastic.block >= config.blocks:
        raise bad_value(
            "elastic.block", elastic.block, f"0 to {config.blocks - 1} with {config.blocks} blocks, or auto"
        )
    there = f"with elastic.block={elastic.block}"
    if config.guess_name == "end_to_end":
        raise bad_value("guess", config.guess_name, f"another one {there}, as backpropagation waits for every block")
    if config.run_dir is None:
        raise bad_value("run_dir", "null", f"a folder {there}, where all blocks save")
    if config.checkpoint.every_steps is None:
        raise bad_value("checkpoint.every_steps", "null", f"a number {there}: updates of a block between its saves")
    if config.replay.size is None:
        raise bad_value("replay.size", "null", f"a number {there}: batches that a block buffers")
    refused = (
        ("feedback.every", config.feedback.every, 1, "where a batch may be missing"),
        ("wire", "int8" if config.wire == "int8" else None, None, "whose links carry floats"),
        ("feedback", config.feedback.policy, "in_order", "which applies what comes, in order"),
        ("feedback.lost", "fail" if config.feedback.lost == "fail" else "skip", "skip", "which skips what is lost"),
        ("tangents", config.tangents, "forward", "as each block is a process"),
        (
            "model.modules",
            "nproc" if config.model.modules == "nproc" else None,
            None,
            "where the blocks are counted first",
        ),
        ("partition", config.partition, "counted", "as each process has one block"),
        ("placement", config.placement, None, "as each process says its block"),
        ("trace", config.trace, False, "whose blocks have no clock in common"),
        ("slow.block", config.slow.block, None, "whose blocks are as slow as they are"),
        ("slow.process", config.slow.process, None, "whose processes are as slow as they are"),
        ("checkpoint.every_minutes", config.checkpoint.every_minutes, None, "which saves by steps"),
        ("resume", None if config.resume == "auto" else config.resume, None, "which goes on with what is in run_dir"),
        ("device", "cuda" if config.device == "cuda" else "cpu", "cpu", "which has not run on a GPU"),
    )
    for key, value, only, reason in refused:
        if value != only:
            allowed = "null" if only is None else str(only).lower()
            shown = str(value).lower() if isinstance(value, bool) else value
            raise bad_value(key, shown, f"{allowed} {there}, {reason}")
    guesses = import_module("fgpipe.gradients.guesses")
    guess = guesses.make(config.guess)
    if guess.copied_every is not None:
        raise bad_value("guess", guess.name, f"one whose weights do not travel down {there}")
    if config.target.depth != 0:
        _check_beyond(config, guess.head is guesses.GuessHead.TRAINED, there)
    if config.link.slow:
        raise config.link.refused(f"null {there}, whose links are as slow as they are")


def _check_beyond(config: Config, trains_head: bool, there: str) -> None:
    """Check a run whose target is not the block's own loss.

    Args: trains_head: the guess has a head that is trained.
    """
    target = f"target={config.target.name} {there.removeprefix('with ')}"
    if config.space != "weight":
        raise bad_value("space", config.space, f"weight with {target}, where a batch may be missing")
    if config.elastic.fallback == "local" and not trains_head:
        allowed = f"wait with guess={config.guess_name}, which trains no head of its own"
        raise bad_value("elastic.fallback", "local", allowed)


def block_of(config: Config, environment: Mapping[str, str] = os.environ) -> int:
    """The block of this process.

    Raises:
        UserError: `elastic.block=auto`, and no variable says which; or it is not one of the net's.
    """
    if config.elastic.block != "auto":
        return int(config.elastic.block)
    name = next((each for each in VARIABLES if each in environment), None)
    if name is None:
        raise bad_value("elastic.block", "auto", f"with one of {', '.join(VARIABLES)} in the environment; or a number")
    value = environment[name]
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) >= config.blocks:
        raise bad_value(name, value, f"0 to {config.blocks - 1}, as elastic.block=auto reads the block there")
    return int(value)
