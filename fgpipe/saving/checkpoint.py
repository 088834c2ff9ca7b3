"""Checkpoints as files: complete, or not a checkpoint (docs/reference/checkpoints.md).

    RUN/checkpoints/step-200/block-0.safetensors, block-0.json, block-1.safetensors, ...
    RUN/checkpoints/step-200/manifest.json      written last; without it there is no checkpoint
    RUN/checkpoints/latest                      the name of the newest

Every file is written under a temporary name, fsynced and renamed. State belongs to blocks, never to processes, so a
run can be resumed on another number of them. No generator is saved: every draw is keyed (`fgpipe.config.rng`).
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fgpipe.errors import RunError, one_line, reason
from fgpipe.gradients.optim import Trained, trainable
from fgpipe.models.net import Net
from fgpipe.saving import durable
from fgpipe.saving.outputs import unwritten

MANIFEST = "manifest.json"
LONGEST = 200
"""Characters of the reason for damage; PyTorch's lists every tensor of a net."""


class CheckpointError(RunError):
    """A checkpoint that cannot be written, or is not what its manifest says; one line that names the file.

    Attributes:
        elsewhere: another process has met it, and says so.
    """

    elsewhere = False


@dataclass(frozen=True)
class Stored:
    """A file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of a checkpoint, and the files that it consists of."""

    step: int
    """Training batches done, which is the id of the next one."""
    epoch: int
    batch: int
    """The next batch: its epoch and its index there."""
    test_accuracy: float | None
    """Accuracy of these very weights; None in mid-epoch."""
    config: dict[str, Any]
    config_hash: str
    epochs: list[dict[str, Any]]
    """The lines of `metrics.jsonl` so far."""
    train_seconds: float
    """Spent on the running epoch."""
    extra_drains: int
    """Drains so far that no schedule foresaw (SIGTERM, `checkpoint.every_minutes`)."""
    files: dict[str, Stored]

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """Read a manifest from JSON.

        Raises:
            ValueError, KeyError, TypeError: not a manifest.
        """
        fields = json.loads(text)
        manifest = cls(**{**fields, "files": {name: Stored(**stored) for name, stored in fields["files"].items()}})
        if config_hash(manifest.config) != manifest.config_hash:
            raise ValueError("the configuration's hash differs")
        return manifest


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration as nested dictionaries, in hexadecimal."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints in the folder of a run."""

    def __init__(self, run: Path) -> None:
        self._path = run / "checkpoints"

    def folder(self, step: int) -> Path:
        """The folder where the checkpoint of a step is, or would be."""
        return self._path / f"step-{step}"

    def steps(self) -> list[int]:
        """Steps whose checkpoints were completed, in order.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        return sorted(step for step in self._begun() if (self.folder(step) / MANIFEST).exists())

    def _begun(self) -> list[int]:
        try:
            names = [path.name.partition("step-")[2] for path in self._path.glob("step-*")]
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read: {reason(error)}") from error
        return [int(name) for name in names if name.isdecimal()]

    def manifest(self, step: int) -> Manifest:
        """The manifest of a step, unchecked.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = self.folder(step) / MANIFEST
        try:
            return Manifest.parse(path.read_text())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {one_line(error)[:LONGEST]}") from error

    def verified(self, step: int) -> Manifest:
        """The manifest of a step, after reading every file that it lists.

        Raises:
            CheckpointError: the manifest or a file is missing or damaged.
        """
        manifest = self.manifest(step)
        for name, stored in manifest.files.items():
            path = self.folder(step) / name
            try:
                found = _stored(path.read_bytes())
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
            if found != stored:
                raise CheckpointError(
                    f"{path} is damaged: {found.bytes} bytes, not the {stored.bytes} that were written"
                )
        return manifest

    def newest(self, warn: Callable[[str], None]) -> Manifest | None:
        """The newest checkpoint whose files are all as they were written; None if none was ever completed.

        Args:
            warn: told of each damaged one that is passed over.

        Raises:
            CheckpointError: there are completed checkpoints, and all are damaged.
        """
        damaged: list[CheckpointError] = []
        for step in reversed(self.steps()):
            try:
                return self.verified(step)
            except CheckpointError as error:
                damaged.append(error)
                warn(str(error))
        if damaged:
            raise damaged[0]
        return None

    def publish(self, manifest: Manifest) -> None:
        """Complete the checkpoint whose files are all written, and point to it."""
        folder = self.folder(manifest.step)
        _write(folder / MANIFEST, json.dumps(asdict(manifest)).encode())
        with _writing(folder):
            durable.sync(self._path)
        self._point_to(manifest.step)

    def _point_to(self, step: int) -> None:
        _write(self._path / "latest", f"{self.folder(step).name}\n".encode())

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` and the one with the highest test accuracy (the earliest of equals)."""
        manifests = []
        for step in self.steps():
            try:
                manifests.append(self.manifest(step))
            except CheckpointError as error:
                if not isinstance(error.__cause__, OSError):  # an old one that resuming has passed over
                    self._remove(step)
        tested = [manifest for manifest in manifests if manifest.test_accuracy is not None]
        best = max(tested, key=lambda manifest: (manifest.test_accuracy, -manifest.step), default=None)
        for manifest in manifests[:-keep]:
            if manifest is not best:
                self._remove(manifest.step)

    def discard(self, after: int) -> None:
        """Go back to the checkpoint of step `after`: point to it, and remove later ones and those that were begun only."""
        complete = self.steps()
        if after in complete:
            self._point_to(after)
        for step in self._begun():
            if step > after or step not in complete:
                self._remove(step)

    def _remove(self, step: int) -> None:
        folder = self.folder(step)
        with _writing(folder), suppress(FileNotFoundError):  # another process removes it too
            (folder / MANIFEST).unlink(missing_ok=True)  # first: half a checkpoint must not look like one
            durable.sync(folder)
            shutil.rmtree(folder)


def write_block(
    folder: Path, block: int, trained: Mapping[str, Trained], counters: Mapping[str, Any]
) -> dict[str, Stored]:
    """Write the state of one block: what it has trained, and counters that JSON can hold.

    Args:
        trained: by name (`block`, `head`): parameters, buffers and the optimizer's state are saved.

    Returns:
        The two files by name.
    """
    return write_files(folder, serialised(block, trained, counters))


def serialised(block: int, trained: Mapping[str, Trained], counters: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of one block by name, as they are to be written: a copy, which later updates do not change."""
    contents = safetensors.torch.save(_apart(_state(trained))), json.dumps(counters).encode()
    return dict(zip(names_of(block), contents, strict=True))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Stored]:
    """Write files of a checkpoint, each durably.

    Raises:
        CheckpointError: one cannot be written.
    """
    return {name: _write(folder / name, content) for name, content in contents.items()}


def read_block(folder: Path, block: int, trained: Mapping[str, Trained]) -> dict[str, Any]:
    """Give one block its saved state, in place; returns the counters.

    Raises:
        CheckpointError: the files cannot be read, or are of another net.
    """
    with _fitting(folder, block):
        tensors = read_tensors(folder, block)
        counters: dict[str, Any] = json.loads((folder / names_of(block)[1]).read_text())
        for part, (module, optimizer) in trained.items():
            module.load_state_dict(_under(f"{part}.module.", tensors))
            if optimizer is not None:
                optimizer.restore(_slots(part, module, tensors))
    return counters


def read_net(folder: Path, net: Net) -> None:
    """Give all blocks of a net, and the heads that are trained, their saved weights and statistics, in place.

    Raises:
        CheckpointError: the files cannot be read, or are of another net.
    """
    for block, parts in enumerate(zip(net.blocks, net.heads, strict=True)):
        with _fitting(folder, block):
            tensors = read_tensors(folder, block)
            for part, module in zip(("block", "head"), parts, strict=True):
                if state := _under(f"{part}.module.", tensors):
                    module.load_state_dict(state)


@contextmanager
def _fitting(folder: Path, block: int) -> Iterator[None]:
    """Guard the reading of a block's files into its modules."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        why = one_line(error)[:LONGEST]
        raise CheckpointError(f"{folder / names_of(block)[0]} does not fit block {block}: {why}") from error


def read_tensors(folder: Path, block: int) -> dict[str, Tensor]:
    """The tensors of one block, by `PART.module.NAME` and `PART.momentum.NAME`, or what else the optimizer keeps."""
    return safetensors.torch.load((folder / names_of(block)[0]).read_bytes())


def _state(trained: Mapping[str, Trained]) -> Iterator[tuple[str, Tensor]]:
    for part, (module, optimizer) in trained.items():
        for name, tensor in module.state_dict().items():
            yield f"{part}.module.{name}", tensor
        for slot, values in (optimizer.state() if optimizer is not None else {}).items():
            for name, value in zip(trainable(module), values, strict=True):
                if value is not None:
                    yield f"{part}.{slot}.{name}", value


def _slots(part: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor | None]]:
    """The state of a part's optimizer, by what it calls its tensors: `momentum`, `exp_avg`, ..."""
    own = {tuple(name.split(".", 2)): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
    slots = dict.fromkeys(slot for _, slot, _ in own if slot != "module")
    return {slot: [own.get((part, slot, name)) for name in trainable(module)] for slot in slots}


def _apart(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors on the CPU, each with memory of its own, as safetensors wants it: tied weights have several names."""
    found: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return found


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def names_of(block: int) -> tuple[str, str]:
    """The files of a block: tensors, and the rest."""
    return f"block-{block}.safetensors", f"block-{block}.json"


def _write(path: Path, content: bytes) -> Stored:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, content)
    return _stored(content)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(unwritten(path, error)) from error


def _stored(content: bytes) -> Stored:
    return Stored(len(content), hashlib.sha256(content).hexdigest())
