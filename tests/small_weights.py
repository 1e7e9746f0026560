"""Checkpoints in the published formats, some kilobytes each, with random numbers: training runs start from them."""

import io
import json
from pathlib import Path

import sentencepiece as spm
import torch

from crab_mini.config import AudioConfig, LLMConfig, VisionConfig
from crab_mini.model.audio_encoder import BEATs
from crab_mini.model.llm import LLM
from crab_mini.model.vision_encoder import ViT
from crab_mini.pretrained import weights as official
from crab_mini.pretrained.checked import published_name
from crab_mini.pretrained.weights import BEATS_NAMES, CLIP_NAMES, LLAMA_NAMES

VISION = VisionConfig(32, 8, 32, 3, 2, 64, mask_layers=(0, 1), llm_layer=2)     # layers as official.clip_vit picks
AUDIO = AudioConfig(16, 16, 32, 2, 2, 64, 6, 2, 12, 20)


def _state(module: torch.nn.Module, names: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + published_name(name, names): value for name, value in module.state_dict().items()}


def clip(folder: Path) -> Path:
    """A whole CLIP as Hugging Face keeps it: config.json with a vision_config, and tensors of the text tower too."""
    folder.mkdir(parents=True)
    v = VISION
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": dict(
        hidden_size=v.dim, intermediate_size=v.ffn_dim, num_hidden_layers=v.layers, num_attention_heads=v.heads,
        image_size=v.image, patch_size=v.patch, hidden_act="quick_gelu", num_channels=3)}))
    state = _state(ViT(v), CLIP_NAMES, "vision_model.") | {"logit_scale": torch.ones(())}
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def beats(folder: Path) -> Path:
    """{"cfg", "model"}, the table of relative distances repeated under every layer."""
    folder.mkdir(parents=True)
    a = AUDIO
    cfg = dict(input_patch_size=a.patch, embed_dim=a.embed, encoder_embed_dim=a.dim, encoder_layers=a.layers,
               encoder_attention_heads=a.heads, encoder_ffn_embed_dim=a.ffn_dim, conv_pos=a.conv_pos,
               conv_pos_groups=a.conv_pos_groups, num_buckets=a.buckets, max_distance=a.max_distance, deep_norm=True,
               gru_rel_pos=True, relative_position_embedding=True, activation_fn="gelu")
    state = _state(BEATs(a), BEATS_NAMES)
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    state |= {table.format(n): state[table.format(0)] for n in range(1, a.layers)}
    torch.save({"cfg": cfg, "model": state}, folder / "BEATs.pt")
    return folder / "BEATs.pt"


def words(path: Path, vocab: int = 400) -> Path:
    """A sentencepiece model as LLaMA's: <unk>, <s>, </s>, bytes, no padding, none of the project's tags."""
    model = io.BytesIO()
    text = ["the dog and the bell make a sound at second 3, from 12 to 48"] * 9
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, model_type="bpe", vocab_size=vocab, hard_vocab_limit=False, byte_fallback=True, minloglevel=2,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path


def llama(folder: Path, vocab: int) -> Path:
    """A folder with an index JSON and two shards."""
    folder.mkdir(parents=True)
    cfg = LLMConfig(vocab, 48, 2, 4, 2, 64)
    (folder / "config.json").write_text(json.dumps(dict(
        vocab_size=vocab, hidden_size=cfg.dim, intermediate_size=cfg.ffn_dim, num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads, num_key_value_heads=cfg.kv_heads, rms_norm_eps=1e-5, hidden_act="silu",
        tie_word_embeddings=False)))
    state = _state(LLM(cfg), LLAMA_NAMES)
    names, where = sorted(state), {}
    for k, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-0000{k + 1}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert official.load_file(folder).keys() == state.keys()
    return folder
