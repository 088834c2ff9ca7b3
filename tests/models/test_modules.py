"""Modules: groups of a net's blocks, and models of others cut into such groups."""

import pytest
import torch
from torch import nn
from torchvision.models import densenet121, resnet18, resnet50, vgg11_bn, vit_b_16

from fgpipe import cut
from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net, resnet, sequential
from fgpipe.plan.costs import ForwardPass
from fgpipe.plan.cut import default_head
from fgpipe.plan.modules import dear_heads, resolved

IMAGE = (3, 32, 32)


def flops(modules: list[nn.Module]) -> tuple[int, ...]:
    from fgpipe.models.net import Net

    return ForwardPass.of(Net(modules, [nn.Identity()] * len(modules)), (2, *IMAGE)).flops


@pytest.mark.parametrize("model", ["resnet18_8", "resnet18_16"])
def test_groups_are_the_net(model: str) -> None:
    """The parameters of all blocks, in order, in as many modules as asked for, a head each; one is end to end."""
    config = compose_config([f"model={model}", "model.width=0.1"])
    units, names = config.model.blocks, None
    for sizes in ([1] * units, [units], [units // 2] * 2, [1, units - 1]):
        model_config = compose_config(
            [f"model={model}", "model.width=0.1", f"model.modules={sizes}".replace(" ", "")]
        ).model
        net = resnet(model_config, config.head, in_channels=3, classes=10)
        shapes = [tuple(each.shape) for block in net.blocks for each in block.parameters()]
        names = names or shapes
        assert len(net.blocks) == len(net.heads) == len(sizes) and shapes == names


def test_as_many_as_processes() -> None:
    """Balanced by FLOPs: no other cut has a cheaper dearest module (by trying them all)."""
    config = compose_config(["model.modules=nproc", "data=cifar10", "data.root=."])
    alone = resnet(compose_config([]).model, config.head, in_channels=3, classes=10)
    costs = ForwardPass.of(alone, (2, 3, config.data.size, config.data.size)).flops
    sizes = resolved(config, 3).model.modules
    assert sum(sizes) == 8 and len(sizes) == 3
    every = [
        max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:])) for a in range(1, 7) for b in range(a + 1, 8)
    ]  # fmt: skip
    ours = [sum(costs[: sizes[0]]), sum(costs[sizes[0] : sizes[0] + sizes[1]]), sum(costs[sizes[0] + sizes[1] :])]
    assert max(ours) == min(every)
    assert resolved(compose_config([]), 3).model.modules is None


@pytest.mark.parametrize("value, allowed", [
    ("[4,3]", "numbers that add up to model.blocks=8"), ("[]", "nproc, or a list"), ("[8,0]", "nproc, or a list"),
    ("many", "nproc, or a list"),
])  # fmt: skip
def test_refused(value: str, allowed: str) -> None:
    with pytest.raises(UserError, match=r"^model.modules=.*: allowed: " + allowed):
        compose_config([f"model.modules={value}"])


def test_dear_heads_are_named() -> None:
    """Heads of 1024 features are dear beside narrow blocks, and cheap beside whole halves of the wide net."""
    narrow = compose_config(["model.modules=[1,7]", "model.width=0.1", "head.hidden=4096"])
    net = resnet(narrow.model, narrow.head, in_channels=3, classes=10)
    size = narrow.data.size
    assert 0 in dear_heads(narrow, ForwardPass.of(net, (2, 3, size, size)).flops)
    wide = compose_config(["model=resnet18_2", "data=cifar10", "data.root=."])
    net = resnet(wide.model, wide.head, in_channels=3, classes=10)
    assert not dear_heads(wide, ForwardPass.of(net, (2, 3, 32, 32)).flops)


@pytest.mark.parametrize("make", [resnet18, resnet50, vgg11_bn])
@pytest.mark.parametrize("modules", [1, 2, 4])
def test_models_of_torchvision(make, modules: int) -> None:
    """The parts are the model's own, compute what it does, and no part of them is left out."""
    torch.manual_seed(0)
    model = make(num_classes=7).eval()
    net = cut(model, modules)
    assert len(net.blocks) == modules and isinstance(net.heads[-1], Head)
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        assert torch.equal(sequential(net).eval()(x), model(x))
    parts = [parameter for part in (*net.blocks, net.heads[-1]) for parameter in part.parameters()]
    assert {id(each) for each in parts} == {id(each) for each in model.parameters()}
    costs = flops(list(net.blocks))
    assert modules == 1 or max(costs) < 2.5 * sum(costs) / modules


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = resnet18(num_classes=7)
    net = cut(model, 2)
    assert all(parameter.is_meta for block in net.blocks for parameter in block.parameters())


@pytest.mark.parametrize("model, line", [
    (lambda: vit_b_16(image_size=32, num_classes=7), "VisionTransformer is no chain of its children: "),
    (lambda: densenet121(num_classes=7), "DenseNet is no chain of its children: they compute something else"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "the last layer is no nn.Linear"),
    (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 7)), r"gives \[3, 7\] for an image: allowed: a row"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 7)), "modules=2: allowed: 1 to 1"),
])  # fmt: skip
def test_what_cannot_be_cut(model, line: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=line):
        cut(model(), 2)


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 1, 1), (9, 6), (6,)])
def test_default_heads(shape: tuple[int, ...]) -> None:
    """Logits of every shape that has one; the meta device has no numbers to look at."""
    head = default_head(torch.Size(shape), 5)
    losses, logits = head.losses(
        torch.empty(3, *shape, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    )
    assert logits.shape == (3, 5) and losses.shape == (3,)
    with pytest.raises(ValueError, match="no default head"):
        default_head(torch.Size((2, 3, 4, 5)), 5)


def test_blocks_and_heads_are_modules() -> None:
    with pytest.raises(TypeError, match="^head 1 of a net is an nn.Module; got NoneType$"):
        Net([nn.Identity(), nn.Identity()], [nn.Identity(), None])  # type: ignore[list-item]  # what is refused
