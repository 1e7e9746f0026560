"""The configuration: overrides that check name and type, the round trip through a checkpoint, presets that fit."""

import dataclasses
import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crab_mini import config
from crab_mini.config import (
    MASK_SCALES,
    MASK_TOKENS,
    Config,
    ConfigError,
    from_dict,
    override,
    preset,
)
from crab_mini.model.crab import Crab, SpecialIds
from crab_mini.tokenizer import MASKS

PRESETS = sorted(config._PRESETS)
FIELDS = [f"{section.name}.{field.name}" for section in dataclasses.fields(Config)
          if dataclasses.is_dataclass(getattr(Config(), section.name))
          for field in dataclasses.fields(getattr(Config(), section.name))] + ["seed"]


def flat(cfg: Config) -> dict:
    """{"lora.heads": 3, ...}."""
    sections = cfg.to_dict()
    return {f"{name}.{key}": value for name, fields in sections.items() if isinstance(fields, dict)
            for key, value in fields.items()} | {"seed": cfg.seed}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_can_be_overridden_and_nothing_else_changes(name):
    before = flat(Config())
    old = before[name]
    new = tuple(v + 1 for v in old) if isinstance(old, tuple) else old + 1
    after = flat(override(Config(), name, ",".join(map(str, new)) if isinstance(new, tuple) else str(new)))
    assert {key for key in before if before[key] != after[key]} == {name}
    assert after[name] == new and type(after[name]) is type(old)


@pytest.mark.parametrize("name, text, line", [
    ("lora.head", "1", "--lora.head: no such field; nearest: lora.heads"),
    ("lor.rank", "1", "--lor.rank: no such field; nearest: lora.rank"),
    ("sed", "1", "--sed: no such field; nearest: seed"),
    ("lora", "1", "--lora: no such field"),
    ("xyzzy", "1", "--xyzzy: no such field; expected one of "),
    ("lora.heads", "three", "--lora.heads: expected int, found 'three'"),
    ("lora.heads", "1.5", "--lora.heads: expected int, found '1.5'"),
    ("lora.alpha", "big", "--lora.alpha: expected float, found 'big'"),
    ("seed", "", "--seed: expected int, found ''"),
    ("reasoning", "maybe", "--reasoning: expected on or off, found 'maybe'"),
    ("vision.mask_layers", "2", "--vision.mask_layers: expected two whole numbers such as 2,4, found '2'"),
    ("vision.mask_layers", "none", "--vision.mask_layers: expected two whole numbers such as 2,4, found 'none'"),
    ("visual_qformer.grid", "2,x", "--visual_qformer.grid: expected two whole numbers such as 2,4, or none, found"),
])
def test_an_override_that_does_not_fit_is_one_line(name, text, line):
    with pytest.raises(ConfigError) as caught:
        override(Config(), name, text)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_reasoning_is_part_of_the_configuration():
    assert override(Config(), "reasoning", "off").reasoning == "off" and preset("tiny").reasoning == "on"
    assert from_dict(override(Config(), "reasoning", "off").to_dict()).reasoning == "off"


def test_a_field_that_may_be_none_can_be_set_to_none():
    assert override(Config(), "visual_qformer.grid", "none").visual_qformer.grid is None


def test_a_checkpoint_s_dictionary_gives_back_the_configuration():
    cfg = override(override(Config(seed=4), "visual_qformer.grid", "none"), "vision.mask_layers", "1,3")
    assert from_dict(cfg.to_dict()) == cfg
    assert from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg         # tuples come back as lists


def test_a_dictionary_of_another_version_is_one_line():
    with pytest.raises(ConfigError, match="lorra: no such section of the configuration; nearest: lora"):
        from_dict({"lorra": {}})
    with pytest.raises(ConfigError, match="lora.ranks: no such field; nearest: rank"):
        from_dict({"lora": {"ranks": 8}})


def test_the_defaults_are_the_preset_tiny():
    assert Config() == preset("tiny")


def test_a_field_that_could_have_one_value_only_is_read_over_with_that_value():
    old = preset("nano").to_dict()
    old["mask"] |= {"scales": 2, "tokens": 3}
    assert from_dict(old) == preset("nano")
    with pytest.raises(ConfigError, match="mask.tokens: no such field"):
        from_dict({"mask": {"scales": 2, "tokens": 4}})


def test_every_scale_has_its_mask_tokens():
    assert MASK_SCALES * MASK_TOKENS == len(MASKS)
    assert len(Config().vision.mask_layers) == MASK_SCALES


def test_an_unknown_preset_is_one_line():
    with pytest.raises(ConfigError, match="--preset tny: no such preset; nearest: tiny"):
        preset("tny")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_built_and_run_forward(name, monkeypatch):
    """With tensors that have a shape and no content: the paper's seven billion parameters cost nothing here."""
    monkeypatch.setenv("CRAB_KERNEL", "torch")
    cfg = preset(name)
    with FakeTensorMode():
        crab = Crab(cfg, SpecialIds(4, 5, (6, 5 + MASK_SCALES * MASK_TOKENS), 3)).with_lora()
        grid, bins = cfg.vision.grid, 128 // cfg.audio.patch
        patches = crab.encode_frames(torch.empty(2, 3, cfg.vision.image, cfg.vision.image, dtype=torch.uint8))
        assert patches.shape == (2, len(cfg.vision.kept), grid ** 2, cfg.vision.dim)
        heard = crab.audio(torch.empty(2, 98, 128))[0]
        assert heard.shape == (2, bins * (98 // cfg.audio.patch), cfg.audio.dim)
        seen = crab.visual_qformer(patches[:, cfg.vision.kept.index(cfg.vision.llm_layer)], grid, grid)
        sounds = crab.audio_qformer(heard, heard.shape[1] // bins, bins)
        assert seen.shape == (2, cfg.visual_qformer.queries, cfg.llm.dim)
        assert sounds.shape == (2, cfg.audio_qformer.queries, cfg.llm.dim)
        states = crab.llm.encode(torch.cat([seen, sounds], 1))
        assert crab.llm.head(states).shape == (2, seen.shape[1] + sounds.shape[1], cfg.llm.vocab_size)
        layers = patches[:, [cfg.vision.kept.index(layer) for layer in cfg.vision.mask_layers]]
        asked = torch.empty(2, MASK_SCALES * MASK_TOKENS, cfg.llm.dim)
        assert crab.mask_logits(asked, layers).shape == (2, cfg.vision.image, cfg.vision.image)
        assert crab.llm.blocks[0].mlp.up_proj.lora_B.shape == (cfg.lora.heads, cfg.lora.rank, cfg.llm.ffn_dim)
