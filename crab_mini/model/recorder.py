"""What happens inside a forward pass: attention weights and router weights, for pictures and tests.

    with recorded_attention({"frame": crab.vision}) as calls:
        crab.encode_frames(frames)
    calls["frame"]          # one (N,n,1+P,1+P) for each layer of the ViT
The weights are those of the pass itself: hooks on the modules record them while it runs. Hooks
exist only inside the `with` block, so a model that nobody looks into pays nothing. Weights are
detached and stay on the model's device. A module with a `q_proj` is an attention, one with a
`route` a LoRA layer. `Crab.attention` and `Crab.route` are the short way.
Not recorded: the mask decoder's attention, which is written out in mask_decoder.py.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from .attention import recording


@contextmanager
def recorded_attention(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Records the attention weights of every `attend` inside the modules, call by call.

    modules: name -> a layer or a whole encoder of LLM, ViT, BEATs or Q-Former. Gives {name: list};
    a list holds one (B,n,L,L_kv) for each call so far, in the order of the calls. ValueError for a
    module without attention.
    """
    calls: dict[str, list[Tensor]] = {name: [] for name in modules}
    hooks = []
    try:
        for name, module in modules.items():
            attentions = [part for part in module.modules() if hasattr(part, "q_proj")]
            if not attentions:
                raise ValueError(f"{name}: {type(module).__name__} holds no attention")
            # `attend` sees the list while one of these runs. It is taken away again also where the
            # forward pass raises an error: later passes must not fill it.
            for attention in attentions:
                hooks.append(attention.register_forward_pre_hook(_begin(calls[name])))
                hooks.append(attention.register_forward_hook(_end, always_call=True))
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _begin(own: list[Tensor]):
    """A hook before an attention's forward pass: from here on its weights go to the list `own`."""
    return lambda module, inputs: recording.append(own)


def _end(module: nn.Module, inputs: tuple, output) -> None:
    """The hook after it. Where several lists record one attention, each is taken away once."""
    recording.pop()


@contextmanager
def recorded_routes(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Records the router weights of every LoRA layer inside `model`, call by call.

    Gives {name of the layer: list}; a list holds one (...,E) for each call, where (...,in) went in.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "route")}
    calls: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [layer.register_forward_hook(_route_to(calls[name])) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _route_to(own: list[Tensor]):
    """A hook after a LoRA layer: the router is asked again about the same input."""
    # It returns nothing: what a hook returns would replace the layer's output.
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own.append(layer.route(inputs[0]).detach())
    return hook
