"""The command `python -m fgpipe.export RUN_DIR FILE.safetensors`: the trained net by itself, without auxiliary heads.

The file loads into an ordinary module (docs/reference/checkpoints.md):

    net = sequential(resnet(config.model, config.head, in_channels=3, classes=10)).to_empty(device="cpu")
    net.load_state_dict(safetensors.torch.load_file("FILE.safetensors"))

Exit codes: 0, done; 2, bad input; 130, interrupted.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.export")

import json
from pathlib import Path

import safetensors.torch

from fgpipe.command import command, say
from fgpipe.errors import UserError, one_line
from fgpipe.saving import durable
from fgpipe.saving.checkpoint import CheckpointError, Checkpoints, Manifest, read_tensors
from fgpipe.saving.outputs import check_file, written


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    if len(arguments) != 2:
        raise UserError("usage: python -m fgpipe.export RUN_DIR FILE.safetensors")
    run, file = map(Path, arguments)
    manifest = export(run, file)
    accuracy = "in mid-epoch" if manifest.test_accuracy is None else f"test accuracy {manifest.test_accuracy:.2%}"
    print(f"{file}: step {manifest.step} of {run}, {accuracy}")
    return 0


def export(run: Path, file: Path) -> Manifest:
    """Write all blocks and the classifier of a run's newest checkpoint, named as `models.net.sequential` names them.

    Returns:
        The manifest of the checkpoint.

    Raises:
        UserError: the run has no complete checkpoint, or the file is none that can be written.
        OutputError: the file cannot be written, as on a full disk.
    """
    check_file("FILE", file)
    checkpoints = Checkpoints(run)
    try:
        manifest = checkpoints.newest(lambda line: say(f"passed over: {line}"))
    except CheckpointError as error:
        raise UserError(f"{run}: no complete checkpoint is left: {one_line(error)}") from error
    if manifest is None:
        raise UserError(
            f"{run}: allowed: the folder of a run with a complete checkpoint in it (checkpoint.every_steps=N)"
        )
    blocks, folder = sum(name.endswith(".safetensors") for name in manifest.files), checkpoints.folder(manifest.step)
    tensors = {}
    for block in range(blocks):
        for name, tensor in read_tensors(folder, block).items():
            part, kind, rest = name.split(".", 2)
            if kind == "module" and (part == "block" or (part == "head" and block == blocks - 1)):
                tensors[f"{block if part == 'block' else blocks}.{rest}"] = tensor
    about = {"format": "pt", "model": json.dumps(manifest.config["model"]), "data": json.dumps(manifest.config["data"])}
    with written(file):
        durable.write(file, safetensors.torch.save(tensors, about))
    return manifest
