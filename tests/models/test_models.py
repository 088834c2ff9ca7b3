"""The nets against torchvision's ResNet-18 and the paper's figures; the heads' share of the compute."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgpipe.config import compose_config
from fgpipe.models.convolution import PaddedConv2d
from fgpipe.models.heads import Head
from fgpipe.models.init import initialize
from fgpipe.models.net import Net, fingerprints, resnet
from fgpipe.models.resnet import resnet18
from fgpipe.plan.costs import ForwardPass, head_flops


def torchvisions(stem: str) -> nn.Module:
    """torchvision's ResNet-18, with the stem of the CIFAR variant if wanted, up to its last feature map."""
    net = torchvision.models.resnet18()
    if stem == "cifar":
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    net.avgpool, net.fc = nn.Identity(), nn.Identity()
    return net


@pytest.mark.parametrize("stem, side", [("cifar", 32), ("imagenet", 64)])
def test_eight_blocks_are_torchvisions_resnet18(stem: str, side: int) -> None:
    """The same parameters in the same order give the same features."""
    torch.manual_seed(0)
    reference = torchvisions(stem)
    ours = nn.Sequential(*resnet18(8, stem=stem)[0])
    tensors = list(reference.parameters())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in tensors]
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), tensors, strict=True):
            mine.copy_(theirs)
        x = torch.randn(4, 3, side, side)
        torch.testing.assert_close(ours(x).flatten(1), reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks, layers", [(8, [3, *[2] * 7]), (16, [2, *[1] * 15])])
def test_layers_and_shapes(blocks: int, layers: list[int]) -> None:
    """3x3 convolutions of each block, and channels and sides of what enters it (paper, 4.1 and A.1)."""
    net = configured(blocks, "mlp")
    kernels = [[m.kernel_size for m in block.modules() if isinstance(m, nn.Conv2d)] for block in net.blocks]
    assert [each.count((3, 3)) for each in kernels] == layers
    per_stage = blocks // 4
    leaving = [
        shape for side, c in ((32, 64), (16, 128), (8, 256), (4, 512)) for shape in [(c, side, side)] * per_stage
    ]
    assert [tuple(shape) for shape in ForwardPass.of(net, (2, 3, 32, 32)).shapes] == [(3, 32, 32), *leaving]


def configured(blocks: int, head: str, width: float = 1):
    config = compose_config([f"model=resnet18_{blocks}", f"model.width={width}", f"head={head}"])
    return resnet(config.model, config.head, in_channels=3, classes=10)


@pytest.mark.parametrize("blocks", [8, 16])
@pytest.mark.parametrize("head", ["cnn", "mlp", "linear"])
def test_heads_cost_less_than_a_tenth(blocks: int, head: str) -> None:
    """At width 1, in FLOPs of a forward pass (paper, A.2). predsim is beyond: docs/reference/algorithm.md says by how much."""
    net = configured(blocks, head)
    of_blocks, of_heads = ForwardPass.of(net, (2, 3, 32, 32)).flops, head_flops(net, (2, 3, 32, 32))
    shares = [a / b for a, b in zip(of_heads[:-1], of_blocks, strict=False)]
    assert max(shares) < 0.1, shares


def test_flops_are_counted_by_hand() -> None:
    """Block 0 at width 1: 2 * 9 * 64 * 32 * 32 * (3 + 64 + 64) for each sample."""
    assert ForwardPass.of(configured(8, "mlp"), (2, 3, 32, 32)).flops[0] == 2 * 2 * 9 * 64 * 32 * 32 * (3 + 64 + 64)


@pytest.mark.parametrize("head", ["cnn", "mlp", "linear"])
def test_flops_are_pytorchs(head: str) -> None:
    """PyTorch's own counter counts the same for blocks and heads; predsim's has products without a layer, too."""
    net, x, labels = configured(8, head, 0.25), torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    of_blocks, of_heads = [], []
    for block, judge in zip(net.blocks, net.heads, strict=True):
        with FlopCounterMode(display=False) as of_block:
            x = block.to_empty(device="cpu")(x)
        with FlopCounterMode(display=False) as of_head:
            judge.to_empty(device="cpu").losses(x, labels)
        of_blocks.append(of_block.get_total_flops())
        of_heads.append(of_head.get_total_flops())
    assert ForwardPass.of(net, (2, 3, 32, 32)).flops == tuple(of_blocks)
    assert head_flops(net, (2, 3, 32, 32)) == of_heads


def test_counting_leaves_a_net_alone() -> None:
    """Nothing is computed on a user's own modules, so that no running statistic moves."""
    net = configured(8, "mlp", 0.1)
    net.blocks = [nn.BatchNorm2d(3), nn.ReLU()]
    ForwardPass.of(net, (2, 3, 8, 8))
    assert net.blocks[0].num_batches_tracked == 0


@pytest.mark.parametrize("head, layers", [("cnn", 5), ("mlp", 4), ("linear", 1), ("predsim", 2)])
def test_hidden_sizes(head: str, layers: int) -> None:
    """32 channels or 1024 features for 8 blocks, 16 or 512 for 16, times the width (paper, A.2)."""
    for blocks, width, sizes in ((8, 1, {"cnn": 32, "mlp": 1024}), (16, 0.5, {"cnn": 8, "mlp": 256})):
        weights = [
            m.weight for m in configured(blocks, head, width).heads[0].modules() if isinstance(m, nn.Conv2d | nn.Linear)
        ]
        assert len(weights) == layers
        if head in sizes:
            assert weights[0].shape[0] == weights[-2].shape[0] == sizes[head]


def test_a_spatial_head_sees_pixels() -> None:
    """Its gradient at the block's output differs within a quadrant, where that of a head which pools first is constant;
    it has as many channels as the block, and no more than 256 times the width, or as asked."""
    for head, constant in (("spatial", False), ("mlp", True)):
        made = configured(8, head, 0.25).heads[0].to_empty(device="cpu")
        initialize(made, torch.Generator().manual_seed(0))
        x = torch.randn(4, 16, 8, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(made.losses(x, torch.arange(4))[0].sum(), x)
        quadrant = gradient[..., :4, :4].flatten(2)
        assert torch.allclose(quadrant, quadrant[..., :1].expand_as(quadrant), atol=1e-7) == constant
    sizes = [made[0].out_channels for made in configured(8, "spatial", 0.25).heads[:-1]]
    assert sizes == [16, 16, 32, 32, 64, 64, 64]
    config = compose_config(["head=spatial", "head.hidden=64", "model.width=0.25"])
    (first, *_) = resnet(config.model, config.head, in_channels=3, classes=10).heads[3].children()
    assert isinstance(first, nn.Conv2d) and first.out_channels == 16


def test_a_strided_head_is_shaped_as_the_rest_of_the_net() -> None:
    """Twice the channels at half the resolution, to as many as the last block has; then one convolution of the same."""
    sizes = [
        [layer.out_channels for layer in head.modules() if isinstance(layer, nn.Conv2d)]
        for head in configured(8, "strided", 0.25).heads[:-1]
    ]
    assert sizes == [[32, 64, 128]] * 2 + [[64, 128]] * 2 + [[128]] * 3
    config = compose_config(["head=strided", "head.hidden=100", "model.width=0.25"])
    first = resnet(config.model, config.head, in_channels=3, classes=10).heads[0]
    assert [layer.out_channels for layer in first.modules() if isinstance(layer, nn.Conv2d)] == [25]


def test_initialisation() -> None:
    """Kaiming uniform: within sqrt(6 / fan_in), of variance 2 / fan_in; biases 0.01."""
    layer = nn.Linear(400, 500)
    initialize(layer, torch.Generator().manual_seed(0))
    assert layer.weight.abs().max() <= (6 / 400) ** 0.5
    assert layer.weight.var().item() == pytest.approx(2 / 400, rel=0.02)
    assert torch.equal(layer.bias, torch.full((500,), 0.01))


def test_predsim_loss_by_loops() -> None:
    """0.99 of the mean squared difference of similarity matrices, 0.01 of cross-entropy (Nokland and Eidnes, 2019)."""
    torch.manual_seed(0)
    head = configured(8, "predsim", 0.1).heads[0].to_empty(device="cpu")
    initialize(head, torch.Generator().manual_seed(1))
    x, labels = torch.randn(5, 6, 4, 4), torch.tensor([1, 1, 0, 3, 9])
    losses, logits = head.losses(x, labels)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(), b - b.mean()
        return a @ b / (a.norm() * b.norm())

    features = head.similarity(x).flatten(2).std(dim=2)
    onehot = nn.functional.one_hot(labels, 10).float()
    mismatch = [(cosine(f, g) - cosine(y, z)) ** 2 for f, y in zip(features, onehot) for g, z in zip(features, onehot)]
    wanted = 0.99 * torch.stack(mismatch).mean() + 0.01 * nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(losses.mean(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (5, 5)], ids=str)
def test_strided_convolution(size: tuple[int, int], kernel: int, dtype: torch.dtype) -> None:
    """Output and gradients are as in float64, whatever memory that is not written to holds."""
    ours, theirs = (
        PaddedConv2d(5, 20, kernel, stride=2).to(dtype),
        nn.Conv2d(5, 20, kernel, 2, kernel // 2, bias=False).double(),
    )
    theirs.load_state_dict(ours.state_dict())
    results = []
    for module in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, 5, *size, generator=generator).to(dtype).to(module.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        y = module.to(memory_format=torch.channels_last)(x)
        signal = torch.randn(y.shape, generator=generator).to(dtype).to(y.dtype)
        spoilt = [torch.full((length,), torch.nan) for length in range(16, 4096, 16)]
        del spoilt
        results.append((y, *torch.autograd.grad(y, [x, module.weight], signal)))
    for got, want in zip(*results, strict=True):
        assert (got.double() - want).norm() < 10 * torch.finfo(dtype).eps * want.norm()


def test_fingerprints_tell_which_block_differs() -> None:
    """By a value, a name or a head; copies have the same, and tensors without values count by their shapes."""

    def made(change: int | None = None) -> Net:
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(3)]
        if change is not None:
            blocks[change].get_buffer("1.running_mean")[0] += 1e-7
        return Net(blocks, [Head(nn.Flatten(), nn.Linear(2, 2)) for _ in blocks])

    same = fingerprints(made())
    assert len(same.unique()) == 3 and torch.equal(same, fingerprints(made()))
    for block in range(3):
        assert (fingerprints(made(block)) != same).tolist() == [j == block for j in range(3)]
    other = made()
    nn.init.zeros_(other.heads[1].get_parameter("1.bias"))
    assert (fingerprints(other) != same).tolist() == [False, True, False]
    with torch.device("meta"):
        one, other = made(), made()
    assert torch.equal(fingerprints(one), fingerprints(other))
