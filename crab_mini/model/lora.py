"""Interaction-aware LoRA: the layer, its router, and how a frozen model gets it and loses it again.

The cooperation on the model side (paper, section 3.2): every linear layer of the frozen LLM carries
one shared A, E heads B_i and a router g = softmax(W_r x) per token, so
    y = W x + (alpha / r) · sum_i g_i · B_i A x
Unusual: all of it is one operation (fused_lora) with a hand-written backward, not a loop over
heads.
    attach(llm.blocks, LoRAConfig(rank=8, heads=3));  optimizer over lora_parameters(llm)
Departs from official Crab: A x is computed once, one dropout mask is shared by the heads, and
`train()` returns the module. Official names map as weight, bias, lora_A.weight -> lora_A,
lora_route.weight -> lora_route (this is W_r), lora_B{i}.weight.T -> lora_B[i].
"""

import math
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ..config import LoRAConfig
from ..fused_lora import fused_lora
from ..fused_lora.reference import softmax


class InteractionLoRALinear(nn.Module):
    """A frozen linear layer with the routed multi-head branch: x (...,in) -> (...,out).

    weight (out,in), bias (out) or None: frozen. lora_A (r,in); lora_route (E,in), the router W_r;
    lora_B (E,r,out): head i's B_i transposed. lora_B is zero at first, so the layer equals the
    linear layer at initialisation.
    """

    def __init__(self, linear: nn.Linear, cfg: LoRAConfig, kernel: str = ""):
        """Takes over linear's weight and bias (no copy) and freezes them.

        New tensors get its device and dtype. kernel: of fused_lora.KERNELS; "": as CRAB_KERNEL
        says. Raises ValueError when cfg has a rank or a head count below one or a dropout outside
        [0, 1).
        """
        super().__init__()
        if cfg.rank < 1 or cfg.heads < 1 or not 0.0 <= cfg.dropout < 1.0:
            raise ValueError("LoRAConfig: rank and heads must be at least 1 and dropout in [0, 1), "
                             f"found {cfg}")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.cfg, self.kernel = cfg, kernel
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.lora_A = nn.Parameter(self.weight.new_empty(cfg.rank, self.in_features))
        self.lora_route = nn.Parameter(self.weight.new_empty(cfg.heads, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(cfg.heads, cfg.rank, self.out_features))
        # A and W_r start like torch's own linear layers.
        for p in (self.lora_A, self.lora_route):
            nn.init.kaiming_uniform_(p, a=math.sqrt(5))

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.cfg.alpha / self.cfg.rank

    def forward(self, x: Tensor) -> Tensor:
        """x (...,in) -> y (...,out)."""
        dropout = self.cfg.dropout if self.training else 0.0
        return fused_lora(x, self.weight, self.bias, self.lora_A, self.lora_route, self.lora_B,
                          self.scaling, dropout, kernel=self.kernel)

    def route(self, x: Tensor) -> Tensor:
        """Which heads each token uses: x (...,in) -> router weights (...,E), summing to one."""
        return softmax(nn.functional.linear(x, self.lora_route))

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same; ValueError with more than one head."""
        if self.cfg.heads != 1:
            raise ValueError(f"merge: exact only with one head, found {self.cfg.heads}: the "
                             "router weighs the heads anew for every token, so no single matrix "
                             "equals them")
        # Built without memory of its own: both of its tensors are replaced.
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        delta = self.scaling * (self.lora_B[0].t() @ self.lora_A)                     # (out,in)
        linear.weight = nn.Parameter(self.weight + delta.detach(), requires_grad=False)
        linear.bias = self.bias
        return linear

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.in_features}, {self.out_features}, {self.cfg}"


def attach(model: nn.Module, cfg: LoRAConfig, kernel: str = "") -> list[InteractionLoRALinear]:
    """Freezes every parameter of `model` and replaces each nn.Linear inside it, in place.

    Returns the new layers. A linear layer used in two places is replaced by one layer in both.
    kernel: see `InteractionLoRALinear`. Raises ValueError when there is no linear layer inside (a
    bare nn.Linear cannot be replaced in place) or when LoRA is there already.
    """
    if any(isinstance(m, InteractionLoRALinear) for m in model.modules()):
        raise ValueError(f"attach: {type(model).__name__} already carries LoRA layers")
    layers = swap(model, nn.Linear, lambda linear: InteractionLoRALinear(linear, cfg, kernel))
    if not layers:
        raise ValueError(f"attach: {type(model).__name__} holds no nn.Linear")
    # Norms inside the model are frozen too: LoRA alone learns.
    trainable = set(lora_parameters(model))
    for p in model.parameters():
        p.requires_grad_(p in trainable)
    return layers


def merge(model: nn.Module) -> list[nn.Linear]:
    """Replaces each LoRA layer inside `model` by the plain linear layer it equals, in place.

    Returns those. Exact for one head, where the router's softmax is 1; with more heads it raises
    ValueError and changes nothing.
    """
    # All are tried before any is replaced.
    for m in model.modules():
        if isinstance(m, InteractionLoRALinear):
            m.merged()
    return swap(model, InteractionLoRALinear, InteractionLoRALinear.merged)


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every LoRA parameter of `model` once: lora_A, lora_route and lora_B of each layer."""
    for m in model.modules():
        if isinstance(m, InteractionLoRALinear):
            yield from (m.lora_A, m.lora_route, m.lora_B)


def swap(model: nn.Module, kind: type, make: Callable[[nn.Module], nn.Module]) -> list[nn.Module]:
    """Replaces every child of exactly type `kind` anywhere in `model` by make(child).

    One new module for each old one, however many names that has.
    """
    # `_modules` and not `named_children()`, which hides a second name of the same module.
    places = [(parent, name, child) for parent in model.modules()
              for name, child in parent._modules.items() if type(child) is kind]
    new = {}
    for parent, name, child in places:
        if child not in new:
            new[child] = make(child)
        setattr(parent, name, new[child])
    return list(new.values())
