"""The mask decoder: equal to the official one number for number; per-item images, the segmentation head, the losses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crab_mini.config import MaskConfig
from crab_mini.model.mask_decoder import (
    LayerNorm2d,
    MaskDecoder,
    PositionCode,
    SegmentationHead,
    bce_loss,
    dice_loss,
)
from crab_mini.pretrained.oddities import official_bce_loss, official_class_loss, official_dice_loss
from crab_mini.pretrained.sam_prompts import PromptedDecoder, PromptEncoder

GOLDEN = Path(__file__).parent / "golden"


def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def golden():
    return arrays("mask_decoder")


@pytest.fixture(scope="module")
def sam(golden):
    cfg = json.loads((GOLDEN / "mask_decoder.json").read_text())["config"]
    width = cfg["transformer_dim"]
    model = PromptedDecoder(
        PromptEncoder(width, cfg["image_embedding_size"], cfg["input_image_size"], cfg["mask_in_chans"]),
        MaskDecoder(width, cfg["depth"], cfg["num_heads"], cfg["mlp_dim"], iou_hidden=cfg["iou_head_hidden_dim"]))
    model.load_state_dict({k[3:]: v for k, v in golden.items() if k.startswith("sd/")})
    return model.eval()


def close(found, expected, atol=5e-5):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@torch.no_grad()
def test_masks_and_iou_are_the_official_ones(sam, golden):
    image, sparse, dense = (golden[f"in/{name}"] for name in ("image_embeddings", "sparse", "dense"))
    code = sam.prompt_encoder.pe_layer.grid(5, 7)
    close(code.transpose(1, 2).unflatten(2, (5, 7)), golden["out/dense_pe"])
    decoder = sam.mask_decoder
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(2, -1, -1)
    hs, src = decoder.transformer((image + dense).flatten(2).transpose(1, 2), code, torch.cat([tokens, sparse], 1))
    close(hs, golden["mid/hs"])
    close(src, golden["mid/src"])
    masks, iou = sam(image, sparse, dense)
    close(masks, golden["out/masks_all"])
    close(iou, golden["out/iou_all"])


@torch.no_grad()
def test_prompts_are_the_official_ones(sam, golden):
    points, labels, boxes, masks = (golden[f"in/{name}"] for name in ("points", "labels", "boxes", "mask_input"))
    sparse, dense = sam.prompt(points, labels)
    close(sparse, golden["out/sparse_points"])
    close(dense, golden["out/dense_nomask"])
    found, iou = sam(golden["in/image_embeddings"], sparse, dense)
    close(found[:, :1], golden["out/masks_points"])
    close(iou[:, :1], golden["out/iou_points"])
    sparse, dense = sam.prompt(points, labels, boxes, masks)
    close(sparse, golden["out/sparse_points_boxes"])
    close(dense, golden["out/dense_mask"])
    close(sam.prompt(boxes=boxes)[0], golden["out/sparse_points_boxes"][:, 2:])
    close(sam.prompt(masks=masks)[1], golden["out/dense_mask"])
    none = sam.prompt(points, torch.full((2, 2), -1), boxes)[0][:, :2]              # a point that is none has no place
    close(none, sam.prompt_encoder.not_a_point_embed.weight.expand(2, 2, -1), 0)
    assert sam.prompt(masks=masks)[0].shape == (2, 0, 32) and sam.prompt()[1].shape == (1, 32, 5, 7)


def test_prompts_that_do_not_fit_are_one_line(sam, golden):
    points, labels = golden["in/points"], golden["in/labels"]
    with pytest.raises(ValueError, match="points and labels: expected both or neither"):
        sam.prompt(points)
    with pytest.raises(ValueError, match="labels: expected 1, 0 or -1, found .*7"):
        sam.prompt(points, labels + 7)
    with pytest.raises(ValueError, match="expected as many of each, found .*'boxes': 1"):
        sam.prompt(points, labels, golden["in/boxes"][:1])


@torch.no_grad()
def test_an_image_per_prompt_is_each_image_alone(sam, golden):
    torch.manual_seed(0)
    images, sparse, dense = torch.randn(3, 32, 5, 7), torch.randn(3, 2, 32), torch.randn(3, 32, 5, 7)
    masks, iou = sam(images, sparse, dense)
    for i in range(3):
        one = slice(i, i + 1)
        close(masks[one], sam(images[one], sparse[one], dense[one])[0], 1e-5)
    assert (masks[0] - masks[1]).abs().max() > 0.1
    code = sam.prompt_encoder.pe_layer.grid(5, 7)
    close(sam.mask_decoder.first_mask(images + dense, code, sparse), masks[:, 0], 1e-5)
    with pytest.raises(ValueError, match="one for each of the 3 prompts, found 2"):
        sam(images[:2], sparse, dense)


def test_layer_norm_2d_is_over_channels():
    x, norm = torch.randn(2, 6, 3, 5), LayerNorm2d(6)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    close(norm(x), expected, 1e-5)


def test_position_codes_are_saved_and_know_x_from_y():
    code = PositionCode(8)
    assert "positional_encoding_gaussian_matrix" in code.state_dict()
    grid = code.grid(2, 3).reshape(2, 3, 8)
    close(grid[1, 0], code(torch.tensor([0.5 / 3, 0.75])), 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(code.grid(2, 3).reshape(2, 3, 8), grid)


def small_head():
    torch.manual_seed(0)
    cfg = MaskConfig(dim=32, heads=4, ffn_dim=48)
    return SegmentationHead(cfg, vision_width=20), [torch.randn(5, 16, 20) for _ in range(2)], torch.randn(5, 6, 32)


def test_head_averages_its_scales():
    head, features, prompts = small_head()
    logits = head(features, prompts, (40, 24))
    assert logits.shape == (5, 40, 24)
    each = []
    for i in range(2):
        image = F.linear(features[i], head.necks[i][0].weight, head.necks[i][0].bias)
        image = F.layer_norm(image, (32,), eps=1e-6).transpose(1, 2).reshape(5, 32, 4, 4)
        masks, _ = head.decoders[i](image, head.position.grid(4, 4), prompts[:, 3 * i:3 * i + 3], torch.zeros(1))
        each.append(F.interpolate(masks[:, :1], (40, 24), mode="bilinear", align_corners=False)[:, 0])
    close(logits, (each[0] + each[1]) / 2, 1e-5)
    shuffled = head([f.roll(1, 0) for f in features], prompts.roll(1, 0), (40, 24))
    close(shuffled, logits.roll(1, 0), 1e-5)                                     # item by item
    assert (head(features, prompts[torch.randperm(5)], (40, 24)) - logits).abs().max() > 1e-3


def test_trainable_parameters_and_prompts_receive_gradients_and_frozen_ones_none():
    head, features, prompts = small_head()
    prompts.requires_grad_()
    logits = head(features, prompts, (16, 16))
    (bce_loss(logits, torch.ones(5, 16, 16)) + dice_loss(logits, torch.ones(5, 16, 16))).mean().backward()
    assert prompts.grad.abs().amax((0, 2)).min() > 0
    for name, p in head.named_parameters():
        if not p.requires_grad:
            assert p.grad is None, name
        elif not name.endswith("k_proj.bias"):               # softmax cancels a key's bias
            assert p.grad.abs().max() > 0, name


def test_head_under_autocast_stays_close():
    head, features, prompts = small_head()
    plain = head(features, prompts, (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        half = head(features, prompts, (16, 16))
    assert half.dtype == torch.float32 and (half - plain).abs().max() < 0.05 * plain.abs().max() + 0.02


def test_head_learns_what_its_prompt_names():
    head, _, _ = small_head()
    torch.manual_seed(1)
    places = torch.eye(16, 20).expand(16, 16, 20)                                # patch i is its own feature
    prompts, target = torch.randn(16, 6, 32), torch.eye(16).reshape(16, 4, 4)    # prompt i means patch i
    target = F.interpolate(target[:, None], scale_factor=4)[:, 0]
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], 3e-3)
    for _ in range(140):                                                         # a plateau first, then a fall
        logits = head([places, places], prompts, (16, 16))
        optimizer.zero_grad()
        (bce_loss(logits, target) + dice_loss(logits, target)).mean().backward()
        optimizer.step()
    overlap = ((logits > 0) & (target > 0)).sum() / ((logits > 0) | (target > 0)).sum()
    assert overlap > 0.8


def test_head_refuses_what_does_not_fit():
    head, features, prompts = small_head()
    with pytest.raises(ValueError, match="square grid of patches, found 15"):
        head([f[:, :15] for f in features], prompts, (16, 16))
    with pytest.raises(ValueError, match="expected 2 scales and 6 mask tokens, found 2 and 5"):
        head(features, prompts[:, :5], (16, 16))
    with pytest.raises(ValueError, match="attention width 32 cannot be divided into 3 heads"):
        MaskDecoder(32, 2, 3, 64)


@pytest.mark.parametrize("case", ["a", "b"])
def test_official_losses(case):
    golden = arrays("metrics")
    target = golden[f"loss/{case}_target"]
    for name, loss in (("dice", official_dice_loss), ("bce", official_bce_loss)):
        logits = golden[f"loss/{case}_logits"].clone().requires_grad_()
        value = loss(logits, target, len(target))
        value.backward()
        close(value.detach(), golden[f"loss/{case}_{name}"], 1e-6)
        close(logits.grad, golden[f"loss/{case}_{name}_grad"], 1e-6)
    close(official_class_loss(golden["loss/f10_logits"], golden["loss/f10_target"]), golden["loss/f10"], 1e-5)


def test_losses_by_hand():
    target = torch.zeros(3, 2, 2)
    target[0, 0] = target[2] = 1
    logits = torch.tensor([50.0, -50.0, 0.0])[:, None, None].expand(3, 2, 2)
    close(dice_loss(logits, target), torch.tensor([1 - 5 / 7, 0.0, 1 - 5 / 7]), 1e-6)
    close(bce_loss(logits, target), torch.tensor([25.0, 0.0, 0.6931472]), 1e-6)
    nearly = torch.full((1, 2, 2), -9.0)                                         # empty target, tiny prediction
    empty = torch.zeros(1, 2, 2)
    assert dice_loss(nearly, empty) < 1e-3 and official_dice_loss(nearly, empty, 1) > 0.3
