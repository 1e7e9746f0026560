"""CLIP's ViT against its equations and a few properties."""

import math
from dataclasses import replace

import pytest
import torch

from crab_mini.config import VisionConfig
from crab_mini.model.vision_encoder import ViT, quick_gelu

CONFIG = VisionConfig(image=21, patch=7, dim=20, layers=3, heads=4, ffn_dim=36, mask_layers=(1, 2), llm_layer=3)
SHAPES = [CONFIG, replace(CONFIG, image=23, patch=5, dim=27, heads=3, ffn_dim=11, layers=1)]


def model(cfg: VisionConfig = CONFIG) -> ViT:
    torch.manual_seed(0)
    vit = ViT(cfg).eval()
    with torch.no_grad():
        for p in vit.parameters():
            p.normal_(0.0, 0.3)
    return vit


def pixels_of(cfg: VisionConfig, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, cfg.image, cfg.image, generator=torch.Generator().manual_seed(1))


def plain_states(vit: ViT, picture: torch.Tensor) -> list[torch.Tensor]:
    """The equations for one picture (3,H,W), patch by patch and head by head, in float64."""
    cfg, size = vit.cfg, vit.cfg.dim // vit.cfg.heads
    w = {name: p.detach().double() for name, p in vit.named_parameters()}

    def norm(x, name):
        gone = x - x.mean(-1, keepdim=True)
        gone = gone / (gone.pow(2).mean(-1, keepdim=True) + cfg.norm_eps).sqrt()
        return gone * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    tokens, side = [w["class_token"]], cfg.patch
    for row in range(cfg.grid):
        for column in range(cfg.grid):
            tile = picture.double()[:, row * side:(row + 1) * side, column * side:(column + 1) * side]
            tokens.append((w["patches.weight"] * tile).sum((1, 2, 3)))
    x = norm(torch.stack(tokens) + w["positions.weight"], "input_norm")
    states = [x]
    for n in range(cfg.layers):
        name = f"layers.{n}."
        h = norm(x, name + "attention_norm")
        q, k, v = (linear(h, f"{name}attention.{p}_proj").split(size, -1) for p in "qkv")
        heads = [(a @ b.T / math.sqrt(size)).softmax(-1) @ c for a, b, c in zip(q, k, v)]
        x = x + linear(torch.cat(heads, -1), name + "attention.o_proj")
        up = linear(norm(x, name + "mlp_norm"), name + "mlp.up")
        x = x + linear(up / (1 + (-1.702 * up).exp()), name + "mlp.down")
        states.append(x)
    return states


@pytest.mark.parametrize("cfg", SHAPES)
def test_states_equal_the_equations(cfg):
    vit, pixels = model(cfg), pixels_of(cfg)
    states = vit.hidden_states(pixels)
    assert len(states) == 1 + cfg.layers
    for n, picture in enumerate(pixels):
        for ours, plain in zip(states, plain_states(vit, picture)):
            torch.testing.assert_close(ours[n].double(), plain, atol=1e-4, rtol=1e-4)


def test_stopping_early_gives_the_same_states():
    vit, pixels = model(), pixels_of(CONFIG)
    whole = vit.hidden_states(pixels)
    for last in range(CONFIG.layers + 1):
        part = vit.hidden_states(pixels, last=last)
        assert len(part) == last + 1 and all((a == b).all() for a, b in zip(part, whole))


def test_pooled_is_the_normed_class_token_and_states_are_not_normed():
    vit, pixels = model(), pixels_of(CONFIG)
    last = vit.hidden_states(pixels)[-1]
    with torch.no_grad():
        vit.pooled_norm.weight.fill_(2.0)
        vit.pooled_norm.bias.fill_(1.0)
    pooled = vit.pooled(pixels)
    torch.testing.assert_close(pooled.mean(-1), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(pooled.std(-1, unbiased=False), torch.full((2,), 2.0), atol=1e-3, rtol=0)
    assert (vit.hidden_states(pixels)[-1] == last).all()


def test_pictures_of_a_batch_do_not_touch():
    vit, pixels = model(), pixels_of(CONFIG, 3)
    alone = vit.hidden_states(pixels[1:2])[-1][0]
    torch.testing.assert_close(vit.hidden_states(pixels)[-1][1], alone, atol=1e-5, rtol=1e-5)


def test_quick_gelu_is_not_the_gelu():
    x = torch.linspace(-4, 4, 81)
    torch.testing.assert_close(quick_gelu(x), x / (1 + (-1.702 * x).exp()))
    assert 0.015 < (quick_gelu(x) - torch.nn.functional.gelu(x)).abs().max() < 0.025


def test_bf16_autocast_stays_near_fp32_and_gradients_reach_everything():
    vit, pixels = ViT(CONFIG), pixels_of(CONFIG)
    exact = vit.pooled(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        rough = vit.pooled(pixels)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    (rough.float() * torch.randn(CONFIG.dim)).sum().backward()
    dead = [n for n, p in vit.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not [n for n in dead if not n.endswith("k_proj.bias")], dead       # softmax cancels a bias of the keys


def test_errors_are_one_clear_line():
    with pytest.raises(ValueError, match="multiple of heads, found 20 and 3"):
        ViT(replace(CONFIG, heads=3))
    with pytest.raises(ValueError, match=r"expected shape \(B, 3, 21, 21\), found \(2, 3, 28, 28\)"):
        ViT(CONFIG).hidden_states(torch.zeros(2, 3, 28, 28))
