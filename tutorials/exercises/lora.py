"""Notebook 08: the interaction-aware LoRA, forward and backward, with B that is not zero."""

import torch

from crab_mini.config import LoRAConfig
from crab_mini.fused_lora import reference, torch_path
from crab_mini.model.lora import InteractionLoRALinear

from ..exercise import exercise

ORACLES = (
    "crab_mini.fused_lora.reference:fused",
    "crab_mini.fused_lora.torch_path:forward",
    "crab_mini.fused_lora:fused_lora",
)


def layer(trial, rows: int, width: int, out: int, rank: int, heads: int):
    """x, weight, bias, A, W_r, B: B is not zero, so that every mistake shows."""
    shapes = (
        (rows, width),
        (out, width),
        (out,),
        (rank, width),
        (heads, width),
        (heads, rank, out),
    )
    return [trial.normal(*shape) for shape in shapes]


@exercise(
    "08",
    lives="crab_mini.fused_lora.reference:loop",
    points=3,
    shortcuts=ORACLES,
    place="crab_mini.model.lora:InteractionLoRALinear.forward",
)
def lora_forward(x, weight, bias, A, W_r, B, alpha):
    """Section 3.2: y = W x + b + (alpha / r) * sum_i softmax(W_r x)_i * B_i A x, for N tokens.

    x (N,in); weight (out,in); bias (out,); A (r,in), shared; W_r (E,in), the router; B (E,r,out),
    head i's B_i transposed -> (N,out).
    """
    raise NotImplementedError


@lora_forward.answered_by
def _(x, weight, bias, A, W_r, B, alpha):
    return reference.loop(x, weight, bias, A, W_r, B, alpha / len(A))


@lora_forward.placed_by
def _(answer):
    def forward(self, x):
        bias = x.new_zeros(self.out_features) if self.bias is None else self.bias
        y = answer(
            x.flatten(0, -2),
            self.weight,
            bias,
            self.lora_A,
            self.lora_route,
            self.lora_B,
            self.cfg.alpha,
        )
        return y.unflatten(0, x.shape[:-1])

    return forward


@lora_forward.requires("without B it is the frozen layer", "x W^T + bias")
def _(trial):
    x, weight, bias, A, W_r, B = layer(trial, 1, 2, 2, 1, 1)
    trial.agree(x, weight, bias, A, W_r, torch.zeros_like(B), 1.0)


@lora_forward.requires(
    "one head is plain LoRA, scaled by alpha / r", "r = len(A); the router of one head gives 1"
)
def _(trial):
    trial.agree(*layer(trial, 1, 1, 1, 1, 1), 2.0)
    trial.agree(*layer(trial, 2, 3, 2, 4, 1), 16.0)


@lora_forward.requires(
    "heads that are alike act as one", "router weights sum to one over the heads of a token"
)
def _(trial):
    for rows, heads in ((1, 2), (2, 2), (4, 3)):
        x, weight, bias, A, W_r, B = layer(trial, rows, 2, 2, 1, heads)
        B = B[:1].expand(heads, -1, -1).clone()
        trial.agree(x, weight, bias, A, W_r, B, 1.0)


@lora_forward.requires("each head counts by its router weight", "softmax(W_r x)_i, not 1 / E")
def _(trial):
    trial.agree(*layer(trial, 1, 2, 1, 1, 2), 1.0)
    trial.agree(*layer(trial, 5, 6, 4, 2, 3), 8.0)


@lora_forward.requires(
    "the router learns: gradients reach x, A, W_r and B", "the router's weights are not detached"
)
def _(trial):
    x, weight, bias, A, W_r, B = layer(trial, 3, 4, 3, 2, 3)
    asking = [
        x.requires_grad_(),
        weight,
        bias,
        A.requires_grad_(),
        W_r.requires_grad_(),
        B.requires_grad_(),
    ]
    trial.gradients_agree(*asking, 4.0)


@exercise("08", lives="crab_mini.fused_lora.torch_path:backward", points=4, replaces=False)
def lora_backward(gy, x, weight, A, W_r, B, scaling):
    """The backward of the layer by hand: gy (N,out), the gradient of y -> gradients of (x, A, W_r,
    B).

    scaling = alpha / r. The frozen weight gets none. No autograd inside. Recompute z = x A^T and g
    = softmax(x W_r^T).
    """
    raise NotImplementedError


@lora_backward.answered_by
def _(gy, x, weight, A, W_r, B, scaling):
    _, z, g = torch_path.forward(x, weight, None, A, W_r, B, scaling, None, 1.0)
    return torch_path.backward(gy, x, weight, A, W_r, B, z, g, scaling, None, 1.0, True)


def backward_inputs(trial, rows: int, width: int, out: int, rank: int, heads: int):
    """gy, x, weight, A, W_r, B."""
    x, weight, _, A, W_r, B = layer(trial, rows, width, out, rank, heads)
    return trial.normal(rows, out), x, weight, A, W_r, B


def gradient(place: int, sizes: list[tuple], heads: int):
    """A property: the gradient at this place of the result is the package's."""

    def holds(trial):
        for rows, width, out, rank in sizes:
            arguments = (*backward_inputs(trial, rows, width, out, rank, heads), 2.0)
            found = trial.call(*arguments)
            trial.expect(
                isinstance(found, (tuple, list)) and len(found) == 4,
                "four gradients: of x, A, W_r and B",
                type(found).__name__,
            )
            trial.equal(found[place], trial.exercise.original()(*arguments)[place], 1e-3)

    return holds


SIZES = [(1, 1, 1, 1), (3, 4, 5, 2)]
lora_backward.requires(
    "B's gradient is scaling * g_i * z^T gy", "as y reads it: u = scaling * g_i z, y += u B_i"
)(gradient(3, SIZES, 2))
lora_backward.requires(
    "A's gradient gathers all heads", "gz = scaling * sum_i g_i * (gy B_i^T); gA = gz^T x"
)(gradient(1, SIZES, 2))
lora_backward.requires(
    "the router's gradient goes through the softmax", "gl = g * (gg - sum(g * gg)), not g * gg"
)(gradient(2, SIZES, 2))
lora_backward.requires(
    "x has three ways to y: the frozen layer, A and the router", "gy W + gz A + gl W_r"
)(gradient(0, SIZES, 2))
lora_backward.requires("many tokens, three heads", "all of it together")(
    lambda trial: [gradient(place, [(7, 6, 5, 4)], 3)(trial) for place in range(4)]
)


@exercise("08", lives="crab_mini.model.lora:InteractionLoRALinear.merged", points=1, replaces=False)
def merged_weight(weight, A, B, alpha):
    """One head needs no router: the matrix that a layer with E = 1 equals. weight (out,in), A
    (r,in), B (1,r,out).

    -> (out,in). ValueError for more than one head: the router weighs them anew for every token.
    """
    raise NotImplementedError


@merged_weight.answered_by
def _(weight, A, B, alpha):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = torch.nn.Parameter(weight.detach().clone())
    made = InteractionLoRALinear(linear, LoRAConfig(rank=len(A), heads=len(B), alpha=alpha))
    made.lora_A.data, made.lora_B.data = A, B
    return made.merged().weight.detach()


@merged_weight.requires("without B it is the weight", "weight + (alpha / r) * something")
def _(trial):
    trial.agree(trial.normal(1, 2), trial.normal(1, 2), torch.zeros(1, 1, 1), 1.0)


@merged_weight.requires("B_i A, not A B_i: the shapes (out,r) and (r,in)", "B holds B_i transposed")
def _(trial):
    trial.agree(trial.normal(2, 3), trial.normal(1, 3), trial.normal(1, 1, 2), 1.0)
    trial.agree(trial.normal(2, 2), trial.normal(1, 2), trial.normal(1, 1, 2), 1.0)


@merged_weight.requires("the branch is scaled by alpha / r", "r = len(A)")
def _(trial):
    trial.agree(trial.normal(2, 3), trial.normal(2, 3), trial.normal(1, 2, 2), 16.0)


@merged_weight.requires("two heads are refused", "no single matrix equals them")
def _(trial):
    try:
        found = trial.call(trial.normal(2, 3), trial.normal(1, 3), trial.normal(2, 1, 2), 1.0)
    except ValueError as error:
        trial.expect(
            "shape" not in str(error) and "size" not in str(error),
            "a ValueError about the heads",
            str(error),
        )
        return
    trial.expect(False, "ValueError", f"a matrix of shape {tuple(getattr(found, 'shape', ()))}")
