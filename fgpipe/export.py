"""The command `python -m fgpipe.export RUN_DIR FILE.safetensors`: the trained net by itself, without auxiliary heads.

The file loads into an ordinary module (docs/checkpoints.md):

    net = sequential(resnet(config.model, config.head, in_channels=3, classes=10)).to_empty(device="cpu")
    net.load_state_dict(safetensors.torch.load_file("FILE.safetensors"))

Exit codes: 0, done; 2, bad input.
"""

import json
import sys
from pathlib import Path

import safetensors.torch

from fgpipe import durable
from fgpipe.checkpoint import CheckpointError, Checkpoints, Manifest, read_tensors
from fgpipe.errors import UserError


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    try:
        if len(arguments) != 2:
            raise UserError("usage: python -m fgpipe.export RUN_DIR FILE.safetensors")
        run, file = map(Path, arguments)
        manifest = export(run, file)
    except UserError as error:
        print(f"fgpipe: {error}", file=sys.stderr)
        return 2
    accuracy = "in mid-epoch" if manifest.test_accuracy is None else f"test accuracy {manifest.test_accuracy:.2%}"
    print(f"{file}: step {manifest.step} of {run}, {accuracy}")
    return 0


def export(run: Path, file: Path) -> Manifest:
    """Write all blocks and the classifier of a run's newest checkpoint, named as `models.net.sequential` names them.

    Returns:
        The manifest of the checkpoint.

    Raises:
        UserError: the run has no complete checkpoint, or the file cannot be written.
    """
    checkpoints = Checkpoints(run)
    try:
        manifest = checkpoints.newest(lambda line: print(f"fgpipe: passed over: {line}", file=sys.stderr))
    except CheckpointError as error:
        raise UserError(f"{run}: no complete checkpoint is left: {error}") from error
    if manifest is None:
        raise UserError(
            f"{run}: allowed: the folder of a run with a complete checkpoint in it (checkpoint.every_steps=N)"
        )
    blocks, folder = manifest.config["model"]["blocks"], checkpoints.folder(manifest.step)
    tensors = {}
    for block in range(blocks):
        for name, tensor in read_tensors(folder, block).items():
            part, kind, rest = name.split(".", 2)
            if kind == "module" and (part == "block" or block == blocks - 1):
                tensors[f"{block if part == 'block' else blocks}.{rest}"] = tensor
    about = {"format": "pt", "model": json.dumps(manifest.config["model"]), "data": json.dumps(manifest.config["data"])}
    try:
        durable.write(file, safetensors.torch.save(tensors, about))
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error
    return manifest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
