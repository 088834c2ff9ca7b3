"""Checks that Hydra cannot make: values that cannot be together, or on so many processes."""

from dataclasses import asdict
from importlib import import_module
from typing import Any

from fgpipe.config.elastic import check_elastic
from fgpipe.config.rules import RULES, is_list
from fgpipe.config.schema import SCOPES, Config, DataConfig, LinkConfig, OptimConfig, ReplayConfig
from fgpipe.errors import bad_value


def check(config: Config) -> None:
    """Reject values that no run can have, alone or together, and fill in the scope that the space implies.

    Raises:
        UserError: with the key, the value and what is allowed.
    """
    for key, (accepts, allowed) in RULES.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        try:
            fits = accepts(value)
        except (TypeError, OverflowError):  # a list in a list, or a number beyond all floats
            fits = False
        if not fits:
            raise bad_value(key, value, allowed)
    modules, blocks = config.model.modules, config.model.blocks
    if is_list(modules) and sum(modules) != blocks:
        raise bad_value("model.modules", list(modules), f"numbers that add up to model.blocks={blocks}")
    _check_data(config.data)
    _check_optimizer(config.optim)
    _check_target(config)
    _check_feedback(config)
    _check_replicas(config)
    if config.scope is None:
        config.scope = SCOPES[config.space][0]
    if config.scope not in SCOPES[config.space]:
        raise bad_value("scope", config.scope, f"{' | '.join(SCOPES[config.space])} with space={config.space}")
    if config.observe.cosine is not None and (config.tangents != "oracle" or config.guess_name == "end_to_end"):
        raise bad_value("observe.cosine", config.observe.cosine, "null unless tangents=oracle, with a guess to compare")
    _check_guess(config)
    _check_lanes(config)
    if config.tangents == "oracle" and config.window != 1:
        raise bad_value("window", config.window, "1 with tangents=oracle, which has no pipeline")
    if config.tangents == "oracle" and config.trace:
        raise bad_value("trace", "true", "false with tangents=oracle, which has no pipeline")
    _check_link(config)
    _check_slow(config)
    _check_replay(config)
    check_elastic(config)
    _check_precision(config)
    _check_asynchronous(config)
    if (config.pipelined or config.parts > 1) and config.share % config.microbatches:
        what = f"the {config.share} samples of a replica" if config.replicas > 1 else f"batch_size={config.batch_size}"
        raise bad_value("microbatches", config.microbatches, f"a divisor of {what}")
    if config.placement is not None and config.guess_name == "end_to_end" and not config.asynchronous:
        raise bad_value("placement", config.placement, "null with guess=end_to_end, whose pipeline goes by rank")
    if config.resume == "auto" and config.run_dir is None:
        raise bad_value("resume", "auto", "with run_dir=FOLDER, the folder to continue in; or a run's folder")


def _check_optimizer(optim: OptimConfig) -> None:
    if optim.name == "sgd" and optim.options:
        raise bad_value("optim.options", dict(optim.options), "{} with optim.name=sgd")
    if optim.look_ahead and (optim.name != "sgd" or not optim.momentum):
        raise bad_value("optim.look_ahead", "true", "false unless optim.name=sgd, with a momentum")


def _check_asynchronous(config: Config) -> None:
    if config.stash != "all" and not config.asynchronous:
        raise bad_value("stash", config.stash, "all unless guess=end_to_end schedule=async_1f1b")
    if config.streams and config.asynchronous:
        raise bad_value("streams", "true", "false with schedule=async_1f1b, whose gradients go from block to block")


def _check_data(data: DataConfig) -> None:
    if len(data.mean) != len(data.std):
        raise bad_value("data.std", list(data.std), f"as many numbers as data.mean has ({len(data.mean)})")
    if data.augment == "resized_crop_flip" and data.stored_size < data.size:
        raise bad_value("data.stored_size", data.stored_size, f"at least data.size={data.size}")
    if data.augment != "resized_crop_flip" and data.stored_size != data.size:
        raise bad_value(
            "data.stored_size", data.stored_size, f"data.size={data.size} unless data.augment=resized_crop_flip"
        )


def _check_target(config: Config) -> None:
    name, depth = config.target.name, config.target.depth
    if name == "global" and depth is not None:
        raise bad_value("target.depth", depth, "null with target=global; use target=intermediate for a depth")
    if name == "local" and depth != 0:
        raise bad_value("target.depth", depth, "0 with target=local")
    if name == "intermediate" and (depth is None or depth < 1):
        raise bad_value("target.depth", depth, "a whole number of at least 1 with target=intermediate")
    if config.guess_name == "end_to_end" and name != "global":
        raise bad_value("target", name, "global with guess=end_to_end")


def _check_feedback(config: Config) -> None:
    """Sparse feedback needs a coefficient for the batches between, and the same batches everywhere."""
    if (every := config.feedback.every) == 1:
        return
    if config.decode != "smoothed":
        raise bad_value(
            "feedback.every", every, f"1 with decode={config.decode}; decode=smoothed remembers a coefficient"
        )
    if config.replay.size is not None:
        raise bad_value(
            "feedback.every", every, f"1 with replay.size={config.replay.size}, whose extra steps have no readings"
        )


def _check_replicas(config: Config) -> None:
    if config.replicas == 1:
        return
    replicas = f"replicas={config.replicas}"
    if config.batch_size % config.replicas or config.share < 2:
        raise bad_value("batch_size", config.batch_size, f"a multiple of {replicas}, with at least 2 samples for each")
    refused = (
        ("feedback", config.feedback.policy, "in_order", "whose updates must come in one order"),
        ("decode", config.decode, "plain", "whose running means would differ"),
        ("step", config.step, "projection", "whose running means would differ"),
    )
    for key, value, only, reason in refused:
        if value != only:
            raise bad_value(key, value, f"{only} with {replicas}, {reason}")
    if config.trace:
        raise bad_value("trace", "true", f"false with {replicas}, whose waits for each other would look like work")
    if (slow := config.slow.key) is not None:
        value = getattr(config.slow, slow)
        raise bad_value(f"slow.{slow}", value, f"null with {replicas}, which would wait for it as one")
    if config.feedback.lost == "skip":
        raise bad_value("feedback.lost", "skip", f"retry | fail with {replicas}, of which all make the same updates")


def _check_guess(config: Config) -> None:
    """Ask the guess itself, in a module that knows mathematics: it is loaded by its name, as any plug-in."""
    guess = import_module("fgpipe.gradients.guesses").make(config.guess)
    named = f"guess={guess.name}"
    config.guess = {"name": guess.name, **asdict(guess)}
    for key, allowed in (("space", guess.spaces), ("scope", guess.scopes)):
        if (value := getattr(config, key)) not in allowed:
            raise bad_value(key, value, f"{' | '.join(allowed)} with {named}")
    if config.replicas > 1 and guess.remembers:
        raise bad_value("replicas", config.replicas, f"1 with {named}, whose memories would differ")
    guess.check(config)
    goes_through = guess.reading.is_row and not guess.reading.has_lane and config.target.name == "global"
    observed = guess.name == "end_to_end" and config.tangents == "oracle"
    if config.head.learns != "labels" and not goes_through and not observed:
        allowed = "labels unless guess=error | mixture target=global, or guess=end_to_end tangents=oracle"
        raise bad_value("head.learns", config.head.learns, allowed)
    plain = ("lanes", "exact"), ("decode", "plain"), ("step", "projection")
    refused: list[tuple[tuple[tuple[str, str], ...], str]] = []
    if guess.is_plain(own_target=config.target.depth == 0):
        refused.append((plain, f"{named} target={config.target.name}, which projects nothing"))
    if not guess.steady:
        refused.append((plain, f"{named} target={config.target.name}, whose directions change with every batch"))
    if guess.reading.is_row:
        refused.append((plain, f"{named}, whose readings are rows"))
    if guess.centred:
        refused.append((plain[1:2], f"{named}, whose coefficients have mean zero"))
    for keys, reason in refused:
        for key, only in keys:
            if (value := getattr(config, key)) != only:
                raise bad_value(key, value, f"{only} with {reason}")


def _check_lanes(config: Config) -> None:
    coded = config.lanes != "exact"
    if coded and config.code == "hadamard" and config.lanes & (config.lanes - 1):
        raise bad_value("lanes", config.lanes, "a power of two with code=hadamard")
    if coded and config.tangents == "oracle" and config.scope == "sample":
        raise bad_value("lanes", config.lanes, "exact with tangents=oracle scope=sample, which projects each sample")
    if config.decode == "predicted" and not coded:
        raise bad_value("decode", config.decode, "plain | smoothed with lanes=exact, which has no noise")


def _check_link(config: Config) -> None:
    link = config.link
    if link.between is not None and not link.slow:
        raise bad_value("link.between", list(link.between), "null unless link.rate or link.rtt is given")
    if link.slow and config.guess_name == "end_to_end" and not config.asynchronous:
        allowed = f"null with guess=end_to_end schedule={config.schedule}, whose gradients take links of their own"
        raise link.refused(f"{allowed}; see launch/two_hosts")


def _check_slow(config: Config) -> None:
    slow = config.slow
    for key, off in (("factor", 1.0), ("jitter", 0.0)):
        if slow.key is None and (value := getattr(slow, key)) != off:
            raise bad_value(f"slow.{key}", value, f"{off:g} unless slow.block or slow.process is given")
    if slow.block is not None and slow.process is not None:
        raise bad_value("slow.process", slow.process, f"null with slow.block={slow.block}")
    if config.tangents == "oracle" and slow.key is not None:
        raise bad_value(f"slow.{slow.key}", getattr(slow, slow.key), "null with tangents=oracle, which has no pipeline")


def _check_precision(config: Config) -> None:
    for key, value, off in (("autocast", config.autocast, "false"), ("wire", config.wire, "null")):
        for other, excluded in (("dtype", "float64"), ("tangents", "oracle")):
            if value and getattr(config, other) == excluded:
                raise bad_value(key, str(value).lower(), f"{off} with {other}={excluded}")
    if config.wire == "int8" and config.replicas > 1 and config.guess_name == "end_to_end":
        raise bad_value(
            "wire", "int8", f"null | bfloat16 with replicas={config.replicas}, whose residuals would differ"
        )
    if config.autocast and config.guess_name == "end_to_end":
        raise bad_value("autocast", "true", "false with guess=end_to_end")


def _check_replay(config: Config) -> None:
    replay, off = config.replay, ReplayConfig()
    if replay.size is None:
        for key in ("reuse", "take"):
            if (value := getattr(replay, key)) != getattr(off, key):
                raise bad_value(f"replay.{key}", value, f"{getattr(off, key)} unless replay.size is given")
        return
    if config.target.depth != 0 and not config.elastic.on:
        raise bad_value(
            "replay.size", replay.size, f"null with target={config.target.name}, whose scalars go by the batch"
        )
    if config.tangents == "oracle":
        raise bad_value("replay.size", replay.size, "null with tangents=oracle, which has no pipeline")
    if config.replicas > 1:
        raise bad_value("replay.size", replay.size, f"null with replicas={config.replicas}, whose updates go together")
    if (config.checkpoint.on or config.resume is not None) and not config.elastic.on:
        raise bad_value(
            "replay.size", replay.size, "null with checkpoint.* or resume; what is in a buffer is not saved"
        )


def check_world(config: Config, world_size: int) -> None:
    """Reject a number of processes that the run cannot be split over.

    Raises:
        UserError: as `check`.
    """
    blocks, replicas = config.blocks, config.replicas
    if world_size % replicas:
        raise bad_value("replicas", replicas, f"a divisor of the number of processes ({world_size})")
    if config.tangents == "oracle" and world_size > 1:
        raise bad_value("tangents", "oracle", f"forward with {world_size} processes; the oracle runs in one")
    if is_list(config.window) and len(config.window) != blocks:
        raise bad_value("window", list(config.window), f"one number for each block ({blocks})")
    world_size //= replicas
    if world_size > blocks:
        most = f"at most one process per block of the net ({blocks})" + (
            f" and replica ({replicas})" if replicas > 1 else ""
        )
        raise bad_value("nproc_per_node", world_size * replicas, most)
    if config.guess_name == "end_to_end" and config.schedule == "1f1b" and config.microbatches < world_size:
        raise bad_value("microbatches", config.microbatches, f"at least the {world_size} processes with schedule=1f1b")
    if config.guess_name == "end_to_end" and config.schedule == "zero_bubble" and config.microbatches % world_size:
        raise bad_value(
            "microbatches", config.microbatches, f"a multiple of the {world_size} processes with schedule=zero_bubble"
        )
    _check_boundaries(config.link, world_size)
    if config.replay.size is not None and world_size == 1 and not config.elastic.on:
        raise bad_value("replay.size", config.replay.size, "null in one process, whose blocks take turns")
    if config.slow.block is not None and config.slow.block >= blocks:
        raise bad_value("slow.block", config.slow.block, f"0 to {blocks - 1} with {blocks} blocks")
    if config.slow.process is not None and config.slow.process >= world_size:
        raise bad_value("slow.process", config.slow.process, f"0 to {world_size - 1} with {world_size} processes")
    if not isinstance(config.partition, str):
        if len(config.partition) != world_size:
            raise bad_value("partition", list(config.partition), f"one number per process of a pipeline ({world_size})")
        if sum(config.partition) != blocks:
            raise bad_value("partition", list(config.partition), f"numbers that add up to {blocks}, the net's blocks")


def _check_boundaries(link: LinkConfig, world_size: int) -> None:
    if link.slow and world_size == 1:
        raise link.refused("null in one process, which has no links")
    if link.between is not None and max(link.between) > world_size - 2:
        raise bad_value("link.between", list(link.between), f"0 to {world_size - 2} with {world_size} processes")
