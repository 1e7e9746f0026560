"""Notebook 09: the same sum in blocks, and what it costs."""

from crab_mini.fused_lora import bench, reference

from ..exercise import exercise
from .lora import layer


@exercise(
    "09",
    lives="crab_mini.fused_lora.reference:fused",
    points=3,
    replaces=False,
    shortcuts=(
        "crab_mini.fused_lora.reference:loop",
        "crab_mini.fused_lora.torch_path:forward",
        "crab_mini.fused_lora:fused_lora",
    ),
)
def blocked_forward(x, weight, bias, A, W_r, B, scaling, block):
    """The fused forward as a kernel walks: `block` rows at a time, all heads of a block at once.

    Arguments as in `lora_forward`, with scaling = alpha / r; block >= 1, which need not divide N.
    No loop over heads. -> (N,out).
    """
    raise NotImplementedError


@blocked_forward.answered_by
def _(x, weight, bias, A, W_r, B, scaling, block):
    return reference.fused(x, weight, bias, A, W_r, B, scaling)


@blocked_forward.requires(
    "one block that holds everything",
    "z = x A^T, g = softmax(x W_r^T), u = g (x) z, y + scaling u B",
)
def _(trial):
    trial.agree(*layer(trial, 1, 2, 1, 1, 2), 2.0, 1)
    trial.agree(*layer(trial, 3, 4, 5, 2, 3), 2.0, 3)


@blocked_forward.requires(
    "a block is not changed by what came before it", "nothing is carried from block to block"
)
def _(trial):
    trial.agree(*layer(trial, 2, 2, 2, 1, 2), 2.0, 1)
    arguments = layer(trial, 4, 3, 2, 2, 2)
    order = [2, 3, 0, 1]
    moved = [arguments[0][order], *arguments[1:]]
    trial.equal(trial.call(*moved, 2.0, 2), trial.exercise.original()(*arguments, 2.0, 2)[order])


@blocked_forward.requires(
    "the last, shorter block is there too", "range(0, N, block), not N // block blocks"
)
def _(trial):
    trial.agree(*layer(trial, 3, 2, 2, 1, 2), 2.0, 2)
    trial.agree(*layer(trial, 2, 2, 2, 1, 2), 2.0, 5)


@blocked_forward.requires(
    "heads count by the router's weights of their own row",
    "softmax over E in each row of the block",
)
def _(trial):
    trial.agree(*layer(trial, 7, 6, 5, 4, 3), 0.5, 3)


@exercise("09", lives="crab_mini.fused_lora.bench:flop_floor", replaces=False)
def flop_ratio(width, out):
    """How much dearer the layer with its branch is than the frozen layer alone: operations of both
    / of the layer.

    Multiply-adds a token, forward + backward, r = 8, E = 3. Frozen layer: width * out forward, and
    as many backward for the gradient of x (none for the weight). Branch: (r + E) * width for A and
    the router and r * E * out for B; each of these three products forward, and two more backward
    (of its input and of its weight).
    """
    raise NotImplementedError


flop_ratio.answered_by(bench.flop_floor)


WIDE = 10**9  # beside so wide a side the other one's share is nothing


@flop_ratio.requires(
    "A and the router read every number of the input",
    "(r + E) * width, three products, over 2 * width * out",
)
def _(trial):
    trial.agree(WIDE, 8)
    trial.agree(WIDE, 1024)


@flop_ratio.requires(
    "all heads of B write every number of the output",
    "r * E * out, three products, over 2 * width * out",
)
def _(trial):
    trial.agree(8, WIDE)
    trial.agree(1024, WIDE)


@flop_ratio.requires("both shares together", "1 + their sum")
def _(trial):
    for width, out in ((8, 8), (4096, 11008), *trial.whole(64, 5000, 3, 2).tolist()):
        trial.agree(width, out)
