"""torchvision's ResNet-50, as it is, in four processes: torchrun --nproc_per_node=4 docs/examples/resnet50.py [key=value ...]

Each learns from its local target; with target=global guess=local tangents pass torchvision's bottlenecks, node by node.
"""

import torch
from torchvision.models import resnet50

import fgpipe

KEYS = ["target=local", "epochs=2", "optim.lr=0.01"]


def net() -> fgpipe.Net:
    """Four modules of torchvision's model, whose weights are drawn where they are used."""
    with torch.device("meta"):
        model = resnet50(num_classes=10)
        model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)  # digits have one channel
    return fgpipe.cut(model, modules=4, image=(1, 16, 16))


if __name__ == "__main__":
    fgpipe.main(KEYS, net())
