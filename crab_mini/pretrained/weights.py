"""Published weights in this project's own classes: configuration and state dict in, module out.

    weights.beats(weights.load_config(f), weights.load_file(f))     f: BEATs_iter3_plus_AS2M_*.pt
    weights.clip_vit(...), weights.llama(...)                       CLIP-ViT-L/14, LLaMA-2
    weights.sam_mask_decoder(...), weights.interaction_lora(...)    SAM, one layer of Crab
Unusual: there is no second copy of an architecture. A dictionary from our names to the published
ones is all that stands between the teaching modules and the paper's system. Every tensor must be
there, in shape, under its name, and none may be left over except those listed here by name. Nothing
loads partially: all is checked before anything is kept (checked.py).
"""

import math
from collections.abc import Mapping

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
from .checked import layers_of, load, number, require, section, take, two_numbers
from .files import load_config, load_file
from .sam_prompts import PromptedDecoder, PromptEncoder

__all__ = ["WeightsError", "beats", "clip_vit", "interaction_lora", "llama", "load_config",
           "load_file", "sam_mask_decoder"]

# Our names -> published ones, one part of a dotted name at a time. Parts that are not listed are
# the same in both.
BEATS_NAMES = {
    "patches": "patch_embedding", "patch_norm": "layer_norm", "project": "post_extract_proj",
    "position": "encoder.pos_conv.0", "gain": "weight_g", "direction": "weight_v",
    "input_norm": "encoder.layer_norm",
    "distance_bias": "encoder.layers.0.self_attn.relative_attention_bias",
    "layers": "encoder.layers", "attention": "self_attn", "attention_norm": "self_attn_layer_norm",
    "o_proj": "out_proj", "gate": "grep_linear", "gate_scale": "grep_a", "up": "fc1", "down": "fc2",
    "mlp_norm": "final_layer_norm"}
CLIP_NAMES = {
    "patches": "embeddings.patch_embedding", "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding", "input_norm": "pre_layrnorm",
    "layers": "encoder.layers", "attention": "self_attn", "attention_norm": "layer_norm1",
    "o_proj": "out_proj", "mlp_norm": "layer_norm2", "up": "fc1", "down": "fc2",
    "pooled_norm": "post_layernorm"}
LLAMA_NAMES = {
    "embed": "model.embed_tokens", "blocks": "model.layers", "attention": "self_attn",
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "norm": "model.norm", "head": "lm_head"}

# Tensors that released files also hold and that no module needs.
BEATS_SPARE = r"(.*\.)?predictor\.(weight|bias)"
CLIP_SPARE = (r"(.*\.)?(embeddings\.position_ids|text_model\..*|visual_projection\..*"
              r"|text_projection\..*|logit_scale)")
LLAMA_SPARE = r"(.*\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
SAM_SPARE = r"(.*\.)?image_encoder\..*"


def beats(config: Mapping, state_dict: Mapping[str, Tensor]) -> BEATs:
    """Published BEATs -> m(fbank (B,F,128), padding_mask) -> features (B,P,D), token mask.

    config: the file's "cfg". The table of relative distances stands under every layer in the file
    and must be the same in all. The classifier of the fine-tuned files is not needed.
    """
    call = "weights.beats"
    # A field that is absent has BEATs' own default, which for these three is not what is needed.
    absent = dict.fromkeys(("deep_norm", "gru_rel_pos", "relative_position_embedding"), False)
    require(call, absent | dict(config), layer_norm_first=False, conv_bias=False,
            activation_fn="gelu", deep_norm=True, gru_rel_pos=True,
            relative_position_embedding=True)
    fields = {ours: number(call, config, name) for ours, name in {
        "patch": "input_patch_size", "embed": "embed_dim", "dim": "encoder_embed_dim",
        "layers": "encoder_layers", "heads": "encoder_attention_heads",
        "ffn_dim": "encoder_ffn_embed_dim", "conv_pos": "conv_pos",
        "conv_pos_groups": "conv_pos_groups", "buckets": "num_buckets",
        "max_distance": "max_distance"}.items()}
    layers_of(call, config, "encoder_layers", state_dict)
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    copies = {table.format(layer): table.format(0) for layer in range(1, fields["layers"])}
    return load(call, lambda: BEATs(AudioConfig(**fields)), (BEATS_NAMES,), state_dict, BEATS_SPARE,
                copies)


def clip_vit(config: Mapping, state_dict: Mapping[str, Tensor]) -> ViT:
    """Published CLIP vision tower -> m.hidden_states(pixels (B,3,H,W)), m.pooled(pixels).

    config: of the vision tower, or of a whole CLIP with that as "vision_config"; the text tower is
    not needed. The layers that Crab reads are counted from the end, so that they are 14, 22 and 23
    of ViT-L/14's 24.
    """
    call = "weights.clip_vit"
    config = section(call, config, "vision_config") or config
    require(call, config, hidden_act="quick_gelu", num_channels=3)
    layers = layers_of(call, config, "num_hidden_layers", state_dict)
    cfg = VisionConfig(
        image=number(call, config, "image_size"), patch=number(call, config, "patch_size"),
        dim=number(call, config, "hidden_size"), layers=layers,
        heads=number(call, config, "num_attention_heads"),
        ffn_dim=number(call, config, "intermediate_size"),
        norm_eps=number(call, config, "layer_norm_eps", float, 1e-5),
        mask_layers=(max(layers - 10, 0), max(layers - 2, 0)), llm_layer=max(layers - 1, 0))
    return load(call, lambda: ViT(cfg), (CLIP_NAMES,), state_dict, CLIP_SPARE)


def llama(config: Mapping, state_dict: Mapping[str, Tensor]) -> LLM:
    """Published LLaMA(-2) -> m(ids (B,L), attention_mask) -> logits (B,L,V); m.generate(ids, n).

    With as many key heads as query heads, or fewer.
    """
    call = "weights.llama"
    # Newer files put rope_theta into a section of its own.
    config = dict(config) | dict(section(call, config, "rope_parameters"))
    require(call, config, hidden_act="silu", tie_word_embeddings=False, attention_bias=False,
            mlp_bias=False, rope_scaling=None, rope_type="default")
    dim = number(call, config, "hidden_size")
    heads = number(call, config, "num_attention_heads")
    require(call, config, head_dim=dim // heads)
    cfg = LLMConfig(
        vocab_size=number(call, config, "vocab_size"), dim=dim,
        layers=layers_of(call, config, "num_hidden_layers", state_dict),
        heads=heads, kv_heads=number(call, config, "num_key_value_heads", default=heads),
        ffn_dim=number(call, config, "intermediate_size"),
        norm_eps=number(call, config, "rms_norm_eps", float, 1e-6),
        rope_theta=number(call, config, "rope_theta", float, 10000.0))
    # A decoder saved without its head model has no "model." before its names.
    bare = {ours: name.removeprefix("model.") for ours, name in LLAMA_NAMES.items()}
    return load(call, lambda: LLM(cfg), (LLAMA_NAMES, bare), state_dict, LLAMA_SPARE)


def sam_mask_decoder(config: Mapping, state_dict: Mapping[str, Tensor]) -> PromptedDecoder:
    """Published Segment Anything, without its image encoder -> m with two calls.

    m(image_embeddings (1,C,h,w), sparse (N,L,C), dense (N,C,h,w)) -> masks (N,4,4h,4w), iou (N,4);
    m.prompt(points, labels, boxes, masks) -> sparse, dense.
    """
    call = "weights.sam_mask_decoder"
    require(call, config, transformer_activation="ReLU", upscaling_activation="GELU(erf)")
    width = number(call, config, "transformer_dim")
    sizes = {ours: number(call, config, name) for ours, name in {
        "layers": "depth", "heads": "num_heads", "hidden": "mlp_dim"}.items()}
    # What is absent here has SAM's defaults.
    sizes |= {ours: number(call, config, name, default=default) for ours, name, default in (
        ("masks", "num_multimask_outputs", 3), ("downsample", "attention_downsample_rate", 2),
        ("iou_hidden", "iou_head_hidden_dim", 256), ("iou_depth", "iou_head_depth", 3))}
    sizes["masks"] += 1         # SAM counts the alternatives alone; the single answer comes first
    grid = two_numbers(call, config, "image_embedding_size")
    frame = two_numbers(call, config, "input_image_size")
    channels = number(call, config, "mask_in_chans", default=16)

    def build() -> PromptedDecoder:
        return PromptedDecoder(PromptEncoder(width, grid, frame, channels),
                               MaskDecoder(width, **sizes))
    return load(call, build, ({},), state_dict, SAM_SPARE)


def interaction_lora(config: Mapping, state_dict: Mapping[str, Tensor]) -> InteractionLoRALinear:
    """One linear layer of published Crab -> m(x (B,L,in)) -> (B,L,out); m.route(x) -> (B,L,E).

    config: r, lora_nums, lora_alpha, and where given lora_dropout, in_features, out_features and
    whether there is a bias. Head i's published B_i is m.lora_B[i], transposed. A, B and the router
    take gradients; weight and bias do not.
    """
    call = "weights.interaction_lora"
    dropout = number(call, config, "lora_dropout", float) if config.get("lora_dropout") else 0.0
    cfg = LoRAConfig(rank=number(call, config, "r"), heads=number(call, config, "lora_nums"),
                     alpha=number(call, config, "lora_alpha", float), dropout=dropout)

    # Sizes that the configuration does not give are those of the base weight.
    prefix = next((key.removesuffix("lora_A.weight") for key in state_dict
                   if key.endswith("lora_A.weight")), "")
    found = getattr(state_dict.get(prefix + "weight"), "shape", ())
    found = found if len(found) == 2 else (None, None)
    out = number(call, config, "out_features", default=found[0])
    inside = number(call, config, "in_features", default=found[1])

    # In an adapter's own file "bias" is a word such as "none": then the tensors decide.
    bias = config.get("bias")
    bias = bias if isinstance(bias, bool) else prefix + "bias" in state_dict
    try:
        layer = InteractionLoRALinear(nn.Linear(inside, out, bias, device="meta"), cfg)
    except ValueError as error:
        raise WeightsError(f"{call}: config: {error}") from None
    scaling = number(call, config, "scaling", float, layer.scaling)
    if not math.isclose(scaling, layer.scaling, rel_tol=1e-4):
        raise WeightsError(f"{call}: config 'scaling': expected {layer.scaling}, "
                           f"found {config['scaling']}")

    # The published layer holds one matrix for each head, ours all of them in one tensor.
    heads = [f"lora_B{i}.weight" for i in range(cfg.heads)]
    shapes = {"weight": (out, inside), "lora_A.weight": (cfg.rank, inside),
              "lora_route.weight": (cfg.heads, inside)}
    shapes |= dict.fromkeys(heads, (out, cfg.rank)) | ({"bias": (out,)} if bias else {})
    tensors = take(call, shapes, state_dict, spare="")
    ours = {"lora_A": tensors.pop("lora_A.weight"), "lora_route": tensors.pop("lora_route.weight"),
            "lora_B": torch.stack([tensors.pop(name).t() for name in heads])}         # (E,r,out)
    layer.load_state_dict(tensors | ours, assign=True)
    return layer.eval()
