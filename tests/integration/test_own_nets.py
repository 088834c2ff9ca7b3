"""Nets of a user's own, of all kinds: as many processes as there are, and a resumed run, compute the same bits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.launching import launch
from tests.integration.test_processes import recorded
from tests.nets import KINDS

COMMON = [
    "epochs=2", "batch_size=8", "data=image_folder", "data.size=16", "data.stored_size=16", "data.augment=none",
    "model.stem=cifar", "optim=constant", "optim.lr=0.01", "window=auto", "threads=1", "device=cpu",
    "observe.tensorboard=false", "checkpoint.every_steps=3",
]  # fmt: skip
WAYS = {"weight": ["scope=block"], "activity": ["space=activity"], "end-to-end": ["guess=end_to_end"]}
WAYS["asynchronous"] = ["guess=end_to_end", "schedule=async_1f1b"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of noise, three batches to train on."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for label in range(5):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_and_resuming_change_nothing(images: Path, tmp_path: Path) -> None:
    """Every loss and every final weight and statistic; resumed in weight space, as what is saved knows no space."""
    common = [*COMMON, f"data.root={images}"]
    runs = {f"{kind}-{way}": [*common, *keys, f"net={kind}"] for kind in KINDS for way, keys in WAYS.items()}
    one, many = recorded(tmp_path / "one", 1, runs), recorded(tmp_path / "many", 3, runs)
    saved = {name: keys for name, keys in runs.items() if name.endswith("-weight")}
    begun = {f"begun {name}": [*keys, "epochs=1"] for name, keys in saved.items()}
    ended = {name: [*keys, f"resume={tmp_path}/resumed/begun {name}"] for name, keys in saved.items()}
    resumed = recorded(tmp_path / "resumed", 1, begun | ended)
    for name, whole in one.items():
        assert whole.keys() == many[name].keys()
        assert not [key for key, value in whole.items() if not np.array_equal(value, many[name][key])], name
    for name, arrays in resumed.items():
        if name in saved:
            learnt = [key for key in one[name] if not key.startswith("loss")]
            assert learnt and not [key for key in learnt if not np.array_equal(one[name][key], arrays[key])], name


SEEDLESS = """
from torch import nn
import fgpipe

blocks = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())]
heads = [fgpipe.Head(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)) for _ in blocks]
fgpipe.main(["epochs=1", "device=cpu"], fgpipe.Net(blocks, heads))
"""


@pytest.mark.slow
def test_processes_must_build_the_same_net(tmp_path: Path) -> None:
    """Without a seed each draws weights of its own; with one the same program trains."""
    program = tmp_path / "net.py"
    program.write_text(SEEDLESS)
    done = launch(2, str(program), f"run_dir={tmp_path / 'run'}")
    line = "fgpipe: block 0 of the net, or its head, has other weights in process 1 than in process 0: allowed: "
    assert done.returncode != 0 and done.stderr.count("fgpipe: ") == 1 and line in done.stderr, done.stderr
    program.write_text(SEEDLESS.replace("import fgpipe\n", "import fgpipe, torch\ntorch.manual_seed(0)\n"))
    done = launch(2, str(program), f"run_dir={tmp_path / 'seeded'}")
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr
