"""The LoRA layer: equals its base at first, one head equals plain LoRA and merges, routing, attach, freezing."""

import copy

import pytest
import torch
from torch import nn

from crab_mini.config import LoRAConfig
from crab_mini.model.lora import InteractionLoRALinear, attach, lora_parameters, merge


def random_layer(inside, out, cfg, bias=True, dtype=torch.float32):
    """A layer whose B is not zero."""
    layer = InteractionLoRALinear(nn.Linear(inside, out, bias=bias), cfg).to(dtype)
    nn.init.normal_(layer.lora_B, std=0.3)
    return layer


class Tied(nn.Module):
    """Two names for one linear layer, and one more."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = self.a
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.last(self.norm(self.b(torch.tanh(self.a(x)))))


def test_at_initialisation_it_equals_the_base():
    model = Tied()
    x = torch.randn(5, 6)
    before = model(x)
    layers = attach(model, LoRAConfig(rank=3, heads=2))
    assert len(layers) == 2 and model.a is model.b and isinstance(model.a, InteractionLoRALinear)
    assert torch.allclose(model(x), before, atol=1e-6)
    nn.init.normal_(layers[0].lora_B)
    assert not torch.allclose(model(x), before, atol=1e-3)


def test_one_head_is_plain_lora_and_merges():
    layer = random_layer(7, 5, LoRAConfig(rank=2, heads=1, alpha=6.0), dtype=torch.float64)
    x = torch.randn(4, 3, 7, dtype=torch.float64)
    plain = nn.functional.linear(x, layer.weight, layer.bias) + 3.0 * (x @ layer.lora_A.t()) @ layer.lora_B[0]
    assert torch.allclose(layer(x), plain, atol=1e-12)
    model = nn.Sequential(copy.deepcopy(layer), nn.Tanh())
    merged = merge(model)
    assert type(model[0]) is nn.Linear and merged == [model[0]]
    assert torch.allclose(model(x), torch.tanh(plain), atol=1e-12)


def test_merge_refuses_several_heads_and_changes_nothing():
    model = nn.Sequential(random_layer(4, 4, LoRAConfig(heads=1)), random_layer(4, 4, LoRAConfig(heads=2)))
    with pytest.raises(ValueError, match="exact only with one head, found 2"):
        merge(model)
    assert all(isinstance(m, InteractionLoRALinear) for m in model)


def test_trainable_gets_gradients_and_frozen_gets_none():
    model = Tied()
    for layer in attach(model, LoRAConfig()):
        nn.init.normal_(layer.lora_B)
    model(torch.randn(3, 6)).square().sum().backward()
    trainable = set(lora_parameters(model))
    assert len(trainable) == 6
    for name, p in model.named_parameters():
        assert p.requires_grad == (p in trainable) == ("lora_" in name), name
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == (p in trainable), name


def test_router_weights_sum_to_one_and_choose_the_head():
    layer = random_layer(6, 5, LoRAConfig(rank=2, heads=3))
    x = torch.randn(2, 4, 6)
    g = layer.route(x)
    assert g.shape == (2, 4, 3) and torch.allclose(g.sum(-1), torch.ones(2, 4))
    with torch.no_grad():
        layer.lora_route.copy_(torch.stack([x[0, 0] * k for k in (-50, 50, -50)]))
    base = nn.functional.linear(x[0, 0], layer.weight, layer.bias)
    head = layer.scaling * (layer.lora_A @ x[0, 0]) @ layer.lora_B[1]
    assert torch.allclose(layer(x)[0, 0], base + head, atol=1e-5)


def test_two_and_three_dimensional_input_agree_and_modes_chain():
    layer = random_layer(6, 5, LoRAConfig(rank=2, heads=2, dropout=0.5))
    x = torch.randn(3, 4, 6)
    assert layer.eval().train() is layer
    layer.eval()
    assert torch.equal(layer(x), layer(x)) and torch.allclose(layer(x).flatten(0, 1), layer(x.flatten(0, 1)), atol=1e-6)
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_dropout_keeps_the_mean_and_spares_base_and_router():
    layer = random_layer(8, 3, LoRAConfig(rank=4, heads=2, dropout=0.5))
    x = torch.randn(1, 8)
    with torch.no_grad():
        many = layer(x.expand(20000, 8)).mean(0)
        assert torch.allclose(many, layer.eval()(x)[0], atol=0.15)
        layer.train().lora_B.zero_()
        assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-6)


def test_state_dict_round_trip_is_exact():
    cfg = LoRAConfig(rank=3, heads=2)
    one, two = random_layer(5, 4, cfg), random_layer(5, 4, cfg)
    assert sorted(one.state_dict()) == ["bias", "lora_A", "lora_B", "lora_route", "weight"]
    two.load_state_dict(one.state_dict())
    x = torch.randn(6, 5)
    assert torch.equal(one(x), two(x))


def test_autocast_bfloat16_trains():
    layer = random_layer(32, 16, LoRAConfig())
    x = torch.randn(10, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), layer(x), atol=0.3, rtol=0.05)
    y.float().sum().backward()
    assert layer.lora_A.grad.dtype == torch.float32 and x.grad.dtype == torch.float32


def test_bad_use_is_one_clear_error():
    with pytest.raises(ValueError, match="holds no nn.Linear"):
        attach(nn.Linear(2, 2), LoRAConfig())
    model = nn.Sequential(nn.Linear(2, 2))
    attach(model, LoRAConfig(rank=1))
    with pytest.raises(ValueError, match="already carries LoRA"):
        attach(model, LoRAConfig())
    for cfg in (LoRAConfig(rank=0), LoRAConfig(heads=0), LoRAConfig(dropout=1.0)):
        with pytest.raises(ValueError, match="LoRAConfig"):
            InteractionLoRALinear(nn.Linear(2, 2), cfg)
