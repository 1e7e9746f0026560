"""Log-mel and BEATs against their equations, and BEATs' pre-training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from crab_mini.av_uie.log_mel import fbank, mel_banks
from crab_mini.config import AudioConfig
from crab_mini.model.audio_encoder import BEATs, distance_buckets, fold_mask
from crab_mini.stages.acoustic_labels import (
    MASKED,
    AcousticTokenizer,
    draw_hidden,
    masked_prediction_loss,
)

CONFIG = AudioConfig(embed=10, dim=24, layers=2, heads=4, ffn_dim=30, conv_pos=6, conv_pos_groups=4, buckets=12,
                     max_distance=20)
SHAPES = [CONFIG, replace(CONFIG, conv_pos=7, dim=18, heads=3, conv_pos_groups=2, buckets=9, embed=5, ffn_dim=7),
          replace(CONFIG, patch=32, conv_pos=1, layers=1)]


def model(cfg: AudioConfig = CONFIG) -> BEATs:
    torch.manual_seed(0)
    beats = BEATs(cfg).eval()
    with torch.no_grad():
        for p in beats.parameters():
            p.normal_(0.0, 0.3)
        for p in beats.layers.parameters():
            p.mul_(1.5)
    return beats


def sound(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.5


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def mels_of(frames: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, frames, 128, generator=torch.Generator().manual_seed(2))


def test_fbank_equals_the_recipe_in_float64():
    wave = sound(1, 1100)
    got = fbank(wave)[0]
    assert got.shape == (1 + (1100 - 400) // 160, 128)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)
    edges = np.linspace(mel(20), mel(8000), 130)
    centre = mel(np.arange(256) * 16000 / 512)
    for n, row in enumerate(got):
        frame = wave[0, n * 160:n * 160 + 400].double().numpy() * 32768
        frame = frame - frame.mean()
        sharp = np.array([frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(400)])
        power = np.abs(np.fft.rfft(sharp * window, 512)) ** 2
        for k in range(128):
            left, top, right = edges[k:k + 3]
            weight = np.maximum(0, np.minimum((centre - left) / (top - left), (right - centre) / (right - top)))
            value = (math.log(max(weight @ power[:256], 2 ** -23)) - 15.41663) / (2 * 6.55582)
            assert float(row[k]) == pytest.approx(value, abs=1e-4)


def test_fbank_frames_are_independent_and_silence_is_the_floor():
    wave = sound(2, 4000)
    whole = fbank(wave)
    torch.testing.assert_close(fbank(wave[:, 320:])[:, :5], whole[:, 2:7], atol=1e-5, rtol=0)
    torch.testing.assert_close(fbank(wave[1:]), whole[1:], atol=1e-5, rtol=0)
    silence = fbank(torch.zeros(1, 400))
    torch.testing.assert_close(silence, torch.full((1, 1, 128), -2.39169), atol=1e-4, rtol=0)
    torch.testing.assert_close(whole[..., 3], torch.full_like(whole[..., 3], -2.39169), atol=1e-4, rtol=0)
    assert (mel_banks(wave.device).sum(0) == 0).nonzero().flatten().tolist() == [3]


def test_fbank_ignores_autocast():
    wave = sound(1, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        assert (fbank(wave) == fbank(wave).float()).all() and fbank(wave).dtype == torch.float32
        rough = fbank(wave)
    torch.testing.assert_close(rough, fbank(wave), atol=1e-6, rtol=0)


@pytest.mark.parametrize("wave", [torch.zeros(1, 399), torch.zeros(400), torch.zeros(1, 400, dtype=torch.int16)])
def test_fbank_refuses_what_is_no_sound(wave):
    with pytest.raises(ValueError, match=r"waveform: expected float of shape \(B, S\)"):
        fbank(wave)


def test_masks_fold_by_counting_not_by_patch():
    mask = torch.zeros(1, 98, dtype=torch.bool)
    mask[0, 41:] = True                                      # 98 frames on 48 tokens: two each, the last two cut
    assert fold_mask(mask, 48)[0].tolist() == [i >= 21 for i in range(48)]
    assert fold_mask(torch.tensor([[False, True, True, True, False]]), 2).tolist() == [[False, True]]


def bucket_by_hand(relative: int, buckets: int, most: int) -> int:
    half, exact = buckets // 2, buckets // 2 // 2
    far = abs(relative)
    if far >= exact:
        far = min(half - 1, exact + int(math.log(far / exact) / math.log(most / exact) * (half - exact)))
    return far + (half if relative > 0 else 0)


@pytest.mark.parametrize("buckets, most", [(32, 128), (12, 20), (9, 20)])
def test_distance_buckets_one_by_one(buckets, most):
    table = distance_buckets(140, buckets, most, torch.device("cpu"))
    wrong = [(i, j) for i in (0, 70, 139) for j in range(140) if table[i, j] != bucket_by_hand(j - i, buckets, most)]
    assert not wrong
    assert int(table.max()) == buckets // 2 * 2 - 1 and int(table.min()) == 0


def plain_features(beats: BEATs, mels: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    """The equations for one row (F,128) and its token mask (N,), token by token, in float64."""
    cfg, size = beats.cfg, beats.cfg.dim // beats.cfg.heads
    w = {name: p.detach().double() for name, p in beats.named_parameters()}

    def norm(x, name):
        gone = x - x.mean(-1, keepdim=True)
        return gone / (gone.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    tiles = [mels.double()[t:t + cfg.patch, f:f + cfg.patch] for t in range(0, len(mels) - cfg.patch + 1, cfg.patch)
             for f in range(0, 128, cfg.patch)]
    x = norm(torch.stack([(w["patches.weight"][:, 0] * tile).sum((1, 2)) for tile in tiles]), "patch_norm")
    x = linear(x, "project") * ~padded[:, None]
    v = w["position.direction"]
    kernel = torch.stack([v[..., k] / v[..., k].pow(2).sum().sqrt() * w["position.gain"][0, 0, k]
                          for k in range(cfg.conv_pos)], -1)
    each, rows = cfg.dim // cfg.conv_pos_groups, []
    for n in range(len(x)):
        row = w["position.bias"].clone()
        for k in range(cfg.conv_pos):
            at = n + k - cfg.conv_pos // 2
            if 0 <= at < len(x):
                for g in range(cfg.conv_pos_groups):
                    part = slice(g * each, (g + 1) * each)
                    row[part] += kernel[part, :, k] @ x[at, part]
        rows.append(row)
    x = norm(x + gelu(torch.stack(rows)), "input_norm")
    bias = torch.stack([torch.stack([w["distance_bias.weight"][bucket_by_hand(j - i, cfg.buckets, cfg.max_distance)]
                                     for j in range(len(x))]) for i in range(len(x))])             # (N,N,H)
    alpha = (2 * cfg.layers) ** 0.25
    for n in range(cfg.layers):
        name = f"layers.{n}."
        q, k, v = (linear(x, f"{name}attention.{p}_proj").split(size, -1) for p in "qkv")
        heads = []
        for h in range(cfg.heads):
            gate = linear(q[h], name + "attention.gate")
            a, b = gate[:, :4].sum(-1).sigmoid(), gate[:, 4:].sum(-1).sigmoid()
            gate = a * (b * w[name + "attention.gate_scale"][0, h, 0, 0] - 1) + 2
            scores = q[h] @ k[h].T / math.sqrt(size) + gate[:, None] * bias[..., h]
            scores[:, padded] = -torch.inf
            heads.append(scores.softmax(-1) @ v[h])
        x = norm(alpha * x + linear(torch.cat(heads, -1), name + "attention.o_proj"), name + "attention_norm")
        x = norm(alpha * x + linear(gelu(linear(x, name + "up")), name + "down"), name + "mlp_norm")
    return x


@pytest.mark.parametrize("cfg", SHAPES)
def test_features_equal_the_equations(cfg):
    beats, mels = model(cfg), mels_of(37)
    padding = torch.zeros(2, 37, dtype=torch.bool)
    padding[1, 19:] = True
    features, tokens = beats(mels, padding)
    assert tokens.any() and not tokens.all()
    for row, mel, padded in zip(features, mels, tokens):
        torch.testing.assert_close(row.double(), plain_features(beats, mel, padded), atol=1e-4, rtol=1e-4)


def test_a_mask_without_padding_changes_nothing():
    beats, mels = model(), mels_of(33)
    features, tokens = beats(mels, torch.zeros(2, 33, dtype=torch.bool))
    assert not tokens.any()
    torch.testing.assert_close(features, beats(mels)[0], atol=1e-6, rtol=0)
    assert beats(mels)[1] is None


def test_padded_tokens_reach_nobody():
    """What stands in the padding does not matter; that it stands there does not either, beyond the position code."""
    beats, mels = model(replace(CONFIG, conv_pos=1)), mels_of(48)
    padding = torch.arange(48)[None].repeat(2, 1) >= 32
    features, tokens = beats(mels, padding)
    other, _ = beats(torch.where(padding[..., None], 7.0, mels), padding)
    short, _ = beats(mels[:, :32])
    keep = ~tokens[0]
    torch.testing.assert_close(features[:, keep], other[:, keep], atol=1e-5, rtol=0)
    torch.testing.assert_close(features[:, keep], short, atol=1e-4, rtol=1e-4)


def test_frames_after_the_last_patch_do_not_count():
    beats, mels = model(), mels_of(47)
    torch.testing.assert_close(beats(mels)[0], beats(mels[:, :32])[0], atol=1e-6, rtol=0)


def test_bf16_autocast_stays_near_fp32_and_gradients_reach_everything():
    torch.manual_seed(0)
    beats, mels = BEATs(CONFIG), mels_of(32)
    exact = beats(mels)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = beats(mels)[0]
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    (rough.float() * torch.randn(CONFIG.dim)).sum().backward()
    dead = [n for n, p in beats.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not [n for n in dead if not n.endswith("k_proj.bias")], dead       # softmax cancels a bias of the keys


def test_errors_are_one_clear_line():
    with pytest.raises(ValueError, match="multiple of heads and of conv_pos_groups"):
        BEATs(replace(CONFIG, heads=5))
    with pytest.raises(ValueError, match="found 12 and 3"):
        BEATs(replace(CONFIG, max_distance=3))
    beats, mels = model(), mels_of(32)
    with pytest.raises(ValueError, match=r"\(B, F, 128\) with F at least 16, found \(2, 15, 128\)"):
        beats(mels[:, :15])
    with pytest.raises(ValueError, match=r"padding_mask: expected shape \(2, 32\), found \(2, 30\)"):
        beats(mels, torch.zeros(2, 30, dtype=torch.bool))
    with pytest.raises(ValueError, match="not padding, found a row without"):
        beats(mels, torch.ones(2, 32, dtype=torch.bool))


def test_labels_are_the_nearest_codes_of_frozen_random_projections():
    tokenizer, mels = AcousticTokenizer(CONFIG, codes=40, size=5), mels_of(33)
    labels = tokenizer(mels)
    assert labels.shape == (2, 16) and not list(tokenizer.parameters())
    for n in range(16):
        t, f = n // 8 * 16, n % 8 * 16
        x = mels[1, t:t + 16, f:f + 16].flatten() @ tokenizer.projection
        assert int((tokenizer.codebook - x / x.norm()).norm(dim=1).argmin()) == labels[1, n]
    assert (tokenizer(mels * 3) == labels).all()             # as loud as you like
    again = AcousticTokenizer(CONFIG, codes=40, size=5)
    assert (again(mels) == labels).all()
    assert (AcousticTokenizer(CONFIG, codes=40, size=5, seed=1)(mels) != labels).any()
    again.load_state_dict(AcousticTokenizer(CONFIG, codes=40, size=5, seed=1).state_dict())
    assert (again(mels) != labels).any()


def test_only_hidden_patches_are_predicted_and_the_encoder_does_not_see_them():
    seen = {}

    class Spy(torch.nn.Module):
        def embed(self, mels):
            return torch.ones(len(mels), 16, 4)

        def encode(self, tokens):
            seen["tokens"] = tokens
            return tokens

    def head(features):
        seen["features"] = features
        return torch.zeros(len(features), 256)

    total, count = masked_prediction_loss(Spy(), head, AcousticTokenizer(CONFIG), mels_of(32, 3),
                                          draw_hidden(3, 16, seeded(5)))
    hidden = seen["tokens"][..., 0] == 0
    assert hidden.sum(1).tolist() == [round(16 * MASKED)] * 3 and int(count) == 36
    assert len(hidden.unique(dim=0)) == 3                    # each row hides others
    assert not seen["features"].any() and len(seen["features"]) == 36
    assert float(total / count) == pytest.approx(math.log(256), rel=1e-5)


def test_masked_prediction_learns():
    torch.manual_seed(0)
    beats, tokenizer = BEATs(CONFIG), AcousticTokenizer(CONFIG, codes=8)
    head = torch.nn.Linear(CONFIG.dim, 8)
    tone = torch.randn(1, 1, 128) + torch.zeros(4, 32, 1)    # one frame repeated: the other patches tell
    optimizer = torch.optim.AdamW([*beats.parameters(), *head.parameters()], 1e-2)
    losses = []
    for step in range(40):
        total, count = masked_prediction_loss(beats, head, tokenizer, tone, draw_hidden(4, 16, seeded(step)))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append(float((total / count).detach()))
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
