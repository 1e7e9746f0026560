"""Published weights in this project's own classes: state dict and configuration in, the module that training uses out.

    official.beats(official.load_config(f), official.load_file(f))           f: BEATs_iter3_plus_AS2M_finetuned_*.pt
    official.clip_vit(...), official.llama(...)                              a file or folder of CLIP-ViT-L/14, LLaMA-2
Unusual: there is no second copy of an architecture. A dictionary from our names to the published ones is all that
stands between the teaching modules and the paper's system; every tensor must be there, in shape, under its name, and
none may be left over except those listed here by name. Nothing loads partially: all is checked before anything is kept.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
from torch import Tensor

from ..config import AudioConfig, LLMConfig, LoRAConfig, VisionConfig
from ..errors import WeightsError
from ..model.audio_encoder import BEATs
from ..model.llm import LLM
from ..model.lora import InteractionLoRALinear
from ..model.mask_decoder import MaskDecoder
from ..model.vision_encoder import ViT
from .files import load_config, load_file
from .sam_prompts import PromptedDecoder, PromptEncoder

__all__ = ["WeightsError", "beats", "clip_vit", "interaction_lora", "llama", "load_config", "load_file",
           "sam_mask_decoder"]

# Our names -> published ones, one part of a dotted name at a time; parts that are not listed are the same in both.
BEATS_NAMES = {
    "patches": "patch_embedding", "patch_norm": "layer_norm", "project": "post_extract_proj",
    "position": "encoder.pos_conv.0", "gain": "weight_g", "direction": "weight_v", "input_norm": "encoder.layer_norm",
    "distance_bias": "encoder.layers.0.self_attn.relative_attention_bias", "layers": "encoder.layers",
    "attention": "self_attn", "attention_norm": "self_attn_layer_norm", "o_proj": "out_proj", "gate": "grep_linear",
    "gate_scale": "grep_a", "up": "fc1", "down": "fc2", "mlp_norm": "final_layer_norm"}
CLIP_NAMES = {
    "patches": "embeddings.patch_embedding", "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding", "input_norm": "pre_layrnorm", "layers": "encoder.layers",
    "attention": "self_attn", "attention_norm": "layer_norm1", "o_proj": "out_proj", "mlp_norm": "layer_norm2",
    "up": "fc1", "down": "fc2", "pooled_norm": "post_layernorm"}
LLAMA_NAMES = {
    "embed": "model.embed_tokens", "blocks": "model.layers", "attention": "self_attn",
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "norm": "model.norm",
    "head": "lm_head"}

# Tensors that released files also hold and that no module needs.
BEATS_SPARE = r"(.*\.)?predictor\.(weight|bias)"
CLIP_SPARE = r"(.*\.)?(embeddings\.position_ids|text_model\..*|visual_projection\..*|text_projection\..*|logit_scale)"
LLAMA_SPARE = r"(.*\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
SAM_SPARE = r"(.*\.)?image_encoder\..*"


def published_name(name: str, table: Mapping[str, str]) -> str:
    """One of our parameter names -> the published one."""
    return ".".join(table.get(part, part) for part in name.split("."))


def _found(value) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _shared_prefix(names, state) -> tuple[str, int]:
    """What stands before most of `names` in the state dict ("", "vision_model.", ...), and before how many."""
    known, votes = set(names), Counter({"": 0})
    for key in state:
        parts = key.split(".")
        votes.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in known)
    return max(votes.items(), key=lambda item: (item[1], -len(item[0])))


def take(call: str, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor],
         spare: str) -> dict[str, Tensor]:
    """Exactly the named tensors of a state dict, as fp32 copies, after all of it was checked.

    call: the function's name, for messages. shapes: published name -> shape. A prefix that all names share is fine.
    spare: regular expression of names that may be there and are not needed. Raises WeightsError that names the first
    parameter that is missing, unexpected, no floating-point tensor or of another shape.
    """
    state = {key: value for key, value in state.items() if not re.fullmatch(spare, key)}
    prefix, _ = _shared_prefix(shapes, state)
    for name, shape in shapes.items():
        found = state.get(prefix + name)
        if found is None:
            raise WeightsError(f"{call}: {prefix}{name}: expected shape {tuple(shape)}, found nothing")
        if not isinstance(found, Tensor) or found.shape != shape:
            raise WeightsError(f"{call}: {prefix}{name}: expected shape {tuple(shape)}, found {_found(found)}")
        if not found.is_floating_point():
            raise WeightsError(f"{call}: {prefix}{name}: expected floating-point numbers, found {found.dtype}")
    wanted = {prefix + name for name in shapes}
    for key, value in state.items():
        if key not in wanted:
            raise WeightsError(f"{call}: {key}: expected no tensor of this name, found {_found(value)}")
    return {name: state[prefix + name].detach().to(torch.float32, copy=True) for name in shapes}


def load(call: str, build: Callable[[], nn.Module], tables: tuple[Mapping[str, str], ...],
         state: Mapping[str, Tensor], spare: str, copies: Mapping[str, str] | None = None) -> nn.Module:
    """The module of `build` with published weights, in eval mode; see `take` for the checks and what they raise.

    tables: our names -> published ones, in the spellings in use; the one that finds most names is taken. copies:
    published names of tensors that repeat another -> that other one. A ValueError of `build` is the configuration's.
    """
    try:
        with torch.device("meta"):
            module = build()                           # no memory and no random numbers for what is replaced anyway
    except ValueError as error:
        raise WeightsError(f"{call}: config: {error}") from None
    own, copies = module.state_dict(), copies or {}
    spellings = [{name: published_name(name, table) for name in own} for table in tables]
    names = max(spellings, key=lambda names: _shared_prefix(names.values(), state)[1])
    shapes = {names[ours]: value.shape for ours, value in own.items()}
    shapes |= {copy: shapes[first] for copy, first in copies.items()}
    tensors = take(call, shapes, state, spare)
    for copy, first in copies.items():
        if not torch.equal(tensors[copy], tensors[first]):
            raise WeightsError(f"{call}: {copy}: expected the same numbers as {first}, found others")
    module.load_state_dict({ours: tensors[name] for ours, name in names.items()}, assign=True)
    return module.eval()


def number(call: str, config: Mapping, name: str, kind: type = int, default=None):
    """A number of the configuration; WeightsError if not above 0, of another type, or absent without default."""
    value = default if config.get(name) is None else config[name]
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or value <= 0:
        found = repr(config[name]) if name in config else "nothing"
        raise WeightsError(f"{call}: config '{name}': expected {kind.__name__} above 0, found {found}")
    return kind(value)


def require(call: str, config: Mapping, **needed) -> None:
    """WeightsError where the configuration asks for another architecture. A field absent or null asks for nothing."""
    for name, value in needed.items():
        if config.get(name) is not None and config[name] != value:
            raise WeightsError(f"{call}: config '{name}': expected {value!r}, found {config[name]!r}")


def beats(config: Mapping, state_dict: Mapping[str, Tensor]) -> BEATs:
    """Published BEATs (config: the file's "cfg") -> m(fbank (B,F,128), padding_mask) -> features (B,N,D), token mask.

    The table of relative distances stands under every layer in the file and must be the same in all. The classifier of
    the fine-tuned files is not needed.
    """
    call = "official.beats"
    absent = dict.fromkeys(("deep_norm", "gru_rel_pos", "relative_position_embedding"), False)    # BEATs' own defaults
    require(call, absent | dict(config), layer_norm_first=False, conv_bias=False, activation_fn="gelu", deep_norm=True,
            gru_rel_pos=True, relative_position_embedding=True)
    fields = {ours: number(call, config, name) for ours, name in {
        "patch": "input_patch_size", "embed": "embed_dim", "dim": "encoder_embed_dim", "layers": "encoder_layers",
        "heads": "encoder_attention_heads", "ffn_dim": "encoder_ffn_embed_dim", "conv_pos": "conv_pos",
        "conv_pos_groups": "conv_pos_groups", "buckets": "num_buckets", "max_distance": "max_distance"}.items()}
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    return load(call, lambda: BEATs(AudioConfig(**fields)), (BEATS_NAMES,), state_dict, BEATS_SPARE,
                {table.format(n): table.format(0) for n in range(1, fields["layers"])})


def clip_vit(config: Mapping, state_dict: Mapping[str, Tensor]) -> ViT:
    """Published CLIP vision tower -> m.hidden_states(pixels (B,3,H,W)), m.pooled(pixels).

    config: of the vision tower, or of a whole CLIP with that as "vision_config"; the text tower is not needed. The
    layers that Crab reads are counted from the end, so that they are 14, 22 and 23 of ViT-L/14's 24.
    """
    call = "official.clip_vit"
    config = config.get("vision_config", config)
    require(call, config, hidden_act="quick_gelu", num_channels=3)
    layers = number(call, config, "num_hidden_layers")
    cfg = VisionConfig(
        image=number(call, config, "image_size"), patch=number(call, config, "patch_size"),
        dim=number(call, config, "hidden_size"), heads=number(call, config, "num_attention_heads"), layers=layers,
        ffn_dim=number(call, config, "intermediate_size"), norm_eps=number(call, config, "layer_norm_eps", float, 1e-5),
        mask_layers=(max(layers - 10, 0), max(layers - 2, 0)), llm_layer=max(layers - 1, 0))
    return load(call, lambda: ViT(cfg), (CLIP_NAMES,), state_dict, CLIP_SPARE)


def llama(config: Mapping, state_dict: Mapping[str, Tensor]) -> LLM:
    """Published LLaMA(-2), all head layouts -> m(ids (B,L), attention_mask) -> logits (B,L,V); m.generate(ids, n)."""
    call = "official.llama"
    config = dict(config) | dict(config.get("rope_parameters") or {})             # where newer files put rope_theta
    require(call, config, hidden_act="silu", tie_word_embeddings=False, attention_bias=False, mlp_bias=False,
            rope_scaling=None, rope_type="default")
    dim, heads = number(call, config, "hidden_size"), number(call, config, "num_attention_heads")
    require(call, config, head_dim=dim // heads)
    cfg = LLMConfig(
        vocab_size=number(call, config, "vocab_size"), dim=dim, layers=number(call, config, "num_hidden_layers"),
        heads=heads, kv_heads=number(call, config, "num_key_value_heads", default=heads),
        ffn_dim=number(call, config, "intermediate_size"), norm_eps=number(call, config, "rms_norm_eps", float, 1e-6),
        rope_theta=number(call, config, "rope_theta", float, 10000.0))
    bare = {ours: name.removeprefix("model.") for ours, name in LLAMA_NAMES.items()}
    return load(call, lambda: LLM(cfg), (LLAMA_NAMES, bare), state_dict, LLAMA_SPARE)


def _pair(call: str, config: Mapping, name: str) -> tuple[int, int]:
    value = config.get(name)
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise WeightsError(f"{call}: config '{name}': expected two whole numbers, found {value!r}")
    return tuple(value)


def sam_mask_decoder(config: Mapping, state_dict: Mapping[str, Tensor]) -> PromptedDecoder:
    """Published Segment Anything -> m(image_embeddings (1,C,h,w), sparse (N,K,C), dense (N,C,h,w)) -> masks
    (N,4,4h,4w), iou (N,4); m.prompt(points, labels, boxes, masks) -> sparse, dense. The image encoder is not needed."""
    call = "official.sam_mask_decoder"
    require(call, config, transformer_activation="ReLU", upscaling_activation="GELU(erf)")
    width = number(call, config, "transformer_dim")
    sizes = {ours: number(call, config, name) for ours, name in {
        "layers": "depth", "heads": "num_heads", "hidden": "mlp_dim"}.items()}
    sizes |= {ours: number(call, config, name, default=default) for ours, name, default in (   # absent: SAM's defaults
        ("masks", "num_multimask_outputs", 3), ("downsample", "attention_downsample_rate", 2),
        ("iou_hidden", "iou_head_hidden_dim", 256), ("iou_depth", "iou_head_depth", 3))}
    sizes["masks"] += 1                                                          # the single answer comes first
    grid, frame = _pair(call, config, "image_embedding_size"), _pair(call, config, "input_image_size")
    channels = number(call, config, "mask_in_chans", default=16)
    return load(call, lambda: PromptedDecoder(PromptEncoder(width, grid, frame, channels), MaskDecoder(width, **sizes)),
                ({},), state_dict, SAM_SPARE)


def interaction_lora(config: Mapping, state_dict: Mapping[str, Tensor]) -> InteractionLoRALinear:
    """One linear layer of published Crab -> m(x (B,T,in)) -> (B,T,out); m.route(x) -> (B,T,E).

    config: r, lora_nums, lora_alpha, and where given lora_dropout, in_features, out_features and whether there is a
    bias. Head i's published B_i is m.lora_B[i], transposed. A, B and the router take gradients; weight and bias do not.
    """
    call = "official.interaction_lora"
    cfg = LoRAConfig(rank=number(call, config, "r"), heads=number(call, config, "lora_nums"),
                     alpha=number(call, config, "lora_alpha", float),
                     dropout=number(call, config, "lora_dropout", float) if config.get("lora_dropout") else 0.0)
    prefix = next((key.removesuffix("lora_A.weight") for key in state_dict if key.endswith("lora_A.weight")), "")
    found = getattr(state_dict.get(prefix + "weight"), "shape", ())
    found = found if len(found) == 2 else (None, None)
    out, inside = (number(call, config, f"{side}_features", default=n) for side, n in zip(("out", "in"), found))
    bias = config.get("bias")
    bias = bias if isinstance(bias, bool) else prefix + "bias" in state_dict     # an adapter's file says "none"
    try:
        layer = InteractionLoRALinear(nn.Linear(inside, out, bias, device="meta"), cfg)
    except ValueError as error:
        raise WeightsError(f"{call}: config: {error}") from None
    if not math.isclose(number(call, config, "scaling", float, layer.scaling), layer.scaling, rel_tol=1e-4):
        raise WeightsError(f"{call}: config 'scaling': expected {layer.scaling}, found {config['scaling']}")
    heads = [f"lora_B{i}.weight" for i in range(cfg.heads)]
    shapes = {"weight": (out, inside), "lora_A.weight": (cfg.rank, inside), "lora_route.weight": (cfg.heads, inside)}
    shapes |= dict.fromkeys(heads, (out, cfg.rank)) | ({"bias": (out,)} if bias else {})
    tensors = take(call, shapes, state_dict, spare="")
    tensors["lora_B"] = torch.stack([tensors.pop(name).t() for name in heads])                   # (E,R,out)
    layer.load_state_dict({name.replace("lora_A.weight", "lora_A").replace("lora_route.weight", "lora_route"): tensor
                           for name, tensor in tensors.items()}, assign=True)
    return layer.eval()
