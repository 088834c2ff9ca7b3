"""torchvision's ResNet-50, as it is, in four processes: torchrun --nproc_per_node=4 docs/examples/resnet50.py [key=value ...]

Each learns from its local target; with target=global guess=local tangents pass torchvision's bottlenecks by torch.func.
"""

import sys

import torch
from torchvision.models import resnet50

import fgpipe

KEYS = ["target=local", "epochs=2", "optim.lr=0.01", "head=linear"]

if __name__ == "__main__":
    with torch.device("meta"):  # its weights are drawn where they are used, the same in every process
        model = resnet50(num_classes=10)
        model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)  # digits have one channel
    fgpipe.run(fgpipe.compose([*KEYS, *sys.argv[1:]]), fgpipe.cut(model, modules=4, image=(1, 16, 16)))
