# %% [markdown]
# # A first look: one forward gradient, by hand
# One process, two blocks: `python docs/examples/first_look.py`, or cell by cell in an editor that knows `# %%`.
# Each cell prints two numbers that must agree, or one that must be small.

# %% Two blocks, each with a head; the last head is the net's classifier. Noisy images of ten classes.
import torch
import torch.nn.functional as F
from torch import nn

import fgpipe

torch.manual_seed(0)
blocks = [
    nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()).double() for i, o in ((1, 8), (8, 8))
]
heads = [fgpipe.Head(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)).double() for _ in blocks]
labels = torch.arange(60) % 10
images = (torch.randn(10, 1, 8, 8)[labels] + 0.3 * torch.randn(60, 1, 8, 8)).double()
names, weights = zip(*blocks[0].named_parameters(), strict=True)


def loss() -> torch.Tensor:
    """The target: the whole net's loss."""
    return F.cross_entropy(heads[1](blocks[1](blocks[0](images))), labels)


print(f"loss {loss().item():.3f}, of chance {torch.tensor(10.0).log().item():.3f}")

# %% Each block learns from its own head for a moment, as the guess of a head that knows nothing is noise.
optimizer = torch.optim.SGD([weight for module in (*blocks, *heads) for weight in module.parameters()], lr=0.1)
for _ in range(10):
    optimizer.zero_grad()
    x = images
    for block, head in zip(blocks, heads, strict=True):
        x = block(x.detach())
        F.cross_entropy(head(x), labels).backward()
    optimizer.step()
print(f"loss {loss().item():.3f}")

# %% A guess of block 0's gradient: that of its own head's loss. It needs nothing from above.
guess = torch.autograd.grad(F.cross_entropy(heads[0](blocks[0](images)), labels), weights)
print("the guess has the shapes of the block's weights:", [list(part.shape) for part in guess])

# %% A tangent through the block: how its output moves when its weights move along the guess.
y, push = fgpipe.linearize(blocks[0], images)
dy = push(None, {name: fgpipe.Direction(part, {0: 1.0}) for name, part in zip(names, guess, strict=True)})
assert dy is not None
moved = {name: weight + 1e-6 * part for name, weight, part in zip(names, weights, guess, strict=True)}
difference = (torch.func.functional_call(blocks[0], moved, images) - y) / 1e-6
error = (dy.value - difference).norm() / difference.norm()
print(f"tangent against finite difference: relative error {error.item():.1e}")

# %% On through the block above and the classifier, and there it is a number: the scalar, all that comes back. Its sign
# says whether the guess was right, or is to be turned round.
z, push_block = fgpipe.linearize(blocks[1], y.detach())
logits, push_head = fgpipe.linearize(heads[1], z.detach())
dlogits = push_head(push_block(dy, {}), {})
assert dlogits is not None
scalar = ((logits.softmax(dim=1) - F.one_hot(labels, 10)) * dlogits.value).sum() / len(labels)
gradient = torch.autograd.grad(loss(), weights)  # what backpropagation would send
true = sum((g * part).sum() for g, part in zip(gradient, guess, strict=True))
print(f"scalar {scalar.item():.10f}, true directional derivative {float(true):.10f}")

# %% The estimate: the guess times the scalar over its squared norm. The oracle projects the true gradient on the guess.
flat_guess, flat_gradient = (torch.cat([part.flatten() for part in parts]) for parts in (guess, gradient))
estimate = scalar.detach() / flat_guess.square().sum() * flat_guess
oracle = flat_gradient @ flat_guess / (flat_guess @ flat_guess) * flat_guess
print(f"estimate against oracle: relative error {((estimate - oracle).norm() / oracle.norm()).item():.1e}")
print(f"cosine of estimate and true gradient: {F.cosine_similarity(estimate, flat_gradient, dim=0).item():.3f}")

# %% A step along it: to first order the loss falls by the rate times the estimate's squared norm.
before, rate = loss().item(), 1e-2
with torch.no_grad():
    for weight, step in zip(weights, estimate.split([weight.numel() for weight in weights]), strict=True):
        weight -= rate * step.view_as(weight)
print(f"the loss falls by {before - loss().item():.3e}; to first order {rate * estimate.square().sum().item():.3e}")
