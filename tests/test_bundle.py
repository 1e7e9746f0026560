"""A whole model in one file: what is saved is what is loaded, also from a file that version 0.1 wrote."""

import re

import pytest
import torch

from crab_mini import bundle
from crab_mini.config import override, preset
from crab_mini.errors import CheckpointError
from crab_mini.tokenizer import Tokenizer
from crab_mini.training import checkpoint

OLD = {"dim": "width", "ffn_dim": "hidden", "vocab_size": "vocab", "q_proj": "q", "k_proj": "k", "v_proj": "v",
       "o_proj": "out"}


@pytest.fixture(scope="module")
def model():
    """A model with random LoRA weights, and its tokenizer."""
    tokenizer = Tokenizer.train(["a dog is seen at second 3"] * 9, 320)
    cfg = override(preset("nano"), "llm.vocab_size", str(tokenizer.size))
    torch.manual_seed(0)
    crab = bundle.build(cfg, tokenizer).with_lora()
    for name, parameter in crab.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    return crab, tokenizer


def same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_saved_is_loaded(model, tmp_path):
    crab, tokenizer = model
    bundle.save(tmp_path / "crab.pt", crab, tokenizer, tasks=["ave"])
    loaded, words, facts = bundle.load(tmp_path / "crab.pt")
    assert same(crab, loaded) and loaded.cfg == crab.cfg and words.model == tokenizer.model
    assert facts == {"tasks": ["ave"]} and not loaded.training


def test_a_file_of_version_0_1_is_read(model, tmp_path):
    """Its names: width, hidden and vocab in the configuration; q, k, v and out in the Q-Formers. Its fields of one value."""
    crab, tokenizer = model
    config = {section: {OLD.get(name, name): value for name, value in values.items()} if isinstance(values, dict)
              else values for section, values in crab.cfg.to_dict().items()}
    config["mask"] |= {"scales": 2, "tokens": 3}
    state = {re.sub(r"(qformer\..*)\.([qkvo]_proj)\.", lambda m: f"{m[1]}.{OLD[m[2]]}.", name): value
             for name, value in crab.state_dict().items()}
    assert "visual_qformer.layers.0.self_attention.out.bias" in state and "width" in config["llm"]
    checkpoint.save(tmp_path / "old.pt", bundle.KIND, config, model=state, facts={},
                    tokenizer=torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8))
    loaded = bundle.load(tmp_path / "old.pt")[0]
    assert same(crab, loaded) and loaded.cfg == crab.cfg


def test_a_parameter_too_many_is_named(model, tmp_path):
    crab, tokenizer = model
    checkpoint.save(tmp_path / "odd.pt", bundle.KIND, crab.cfg.to_dict(), facts={},
                    model=crab.state_dict() | {"stranger": torch.zeros(1)},
                    tokenizer=torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="odd.pt: .*stranger"):
        bundle.load(tmp_path / "odd.pt")
