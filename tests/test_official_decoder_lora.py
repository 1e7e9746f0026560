"""SAM's mask decoder and Crab's LoRA layer from published names: the goldens, every tensor matters, clear errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crab_mini.config import LoRAConfig, MaskConfig
from crab_mini.model.lora import InteractionLoRALinear
from crab_mini.model.mask_decoder import MaskDecoder, SegmentationHead
from crab_mini.pretrained import weights as official

GOLDEN = Path(__file__).parent / "golden"
SAM_CONFIG = json.loads((GOLDEN / "mask_decoder.json").read_text())["config"]
LORA_CONFIGS = json.loads((GOLDEN / "lora.json").read_text())["config"]


def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def under(golden, prefix):
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


SAM, LORA = arrays("mask_decoder"), arrays("lora")
SAM_STATE = under(SAM, "sd/")


def close(found, expected, atol=5e-5, rtol=0):
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


# ---- SAM

def sam_outputs(model):
    """Everything that prompts and weights lead to, as one vector."""
    points, labels, boxes, masks = (SAM[f"in/{name}"] for name in ("points", "labels", "boxes", "mask_input"))
    with torch.no_grad():
        parts = [*model(SAM["in/image_embeddings"], SAM["in/sparse"], SAM["in/dense"]), *model.prompt(points, labels),
                 *model.prompt(points, labels, boxes, masks)]
    return torch.cat([part.flatten() for part in parts])


def test_sam_is_the_training_class_and_its_masks_are_the_official_ones():
    model = official.sam_mask_decoder(SAM_CONFIG, SAM_STATE)
    head = SegmentationHead(MaskConfig(), 16)
    assert type(model.mask_decoder) is type(head.decoders[0]) is MaskDecoder
    assert type(model.prompt_encoder.pe_layer) is type(head.position) and not model.training
    masks, iou = model(SAM["in/image_embeddings"], SAM["in/sparse"], SAM["in/dense"])
    close(masks, SAM["out/masks_all"])
    close(iou, SAM["out/iou_all"])
    points, labels, boxes, mask_input = (SAM[f"in/{name}"] for name in ("points", "labels", "boxes", "mask_input"))
    for expected, prompts in (("points", (points, labels)), ("points_boxes", (points, labels, boxes))):
        close(model.prompt(*prompts)[0], SAM[f"out/sparse_{expected}"])
    close(model.prompt(points, labels)[1], SAM["out/dense_nomask"])
    close(model.prompt(points, labels, boxes, mask_input)[1], SAM["out/dense_mask"])


def test_every_tensor_of_sam_matters():
    before = sam_outputs(official.sam_mask_decoder(SAM_CONFIG, SAM_STATE))
    for name, tensor in SAM_STATE.items():
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        changed = sam_outputs(official.sam_mask_decoder(SAM_CONFIG, SAM_STATE | {name: tensor + 0.5 * noise}))
        moved = (changed - before).abs().max()
        if name.endswith("k_proj.bias"):               # adds the same to all scores of a query: softmax cancels it
            assert moved < 1e-3, name
        else:
            assert moved > 1e-3, name


def random_sam(**changes):
    """A configuration at other sizes and a random state dict for it, shapes written out from SAM's description."""
    cfg = SAM_CONFIG | changes
    c, mlp, hidden = cfg["transformer_dim"], cfg["mlp_dim"], cfg["iou_head_hidden_dim"]
    n = cfg["num_multimask_outputs"] + 1
    inner, m = c // cfg["attention_downsample_rate"], cfg["mask_in_chans"]
    shapes = {}

    def linear(name, inside, out):
        shapes.update({f"{name}.weight": (out, inside), f"{name}.bias": (out,)})

    def attention(name, width):
        for part in ("q_proj", "k_proj", "v_proj"):
            linear(f"{name}.{part}", c, width)
        linear(f"{name}.out_proj", width, c)

    def norm(name, width):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    d, t, p = "mask_decoder", "mask_decoder.transformer", "prompt_encoder"
    for i in range(cfg["depth"]):
        attention(f"{t}.layers.{i}.self_attn", c)
        attention(f"{t}.layers.{i}.cross_attn_token_to_image", inner)
        attention(f"{t}.layers.{i}.cross_attn_image_to_token", inner)
        linear(f"{t}.layers.{i}.mlp.lin1", c, mlp)
        linear(f"{t}.layers.{i}.mlp.lin2", mlp, c)
        for k in range(1, 5):
            norm(f"{t}.layers.{i}.norm{k}", c)
    attention(f"{t}.final_attn_token_to_image", inner)
    norm(f"{t}.norm_final_attn", c)
    for k in range(n):
        for j, (a, b) in enumerate(((c, c), (c, c), (c, c // 8))):
            linear(f"{d}.output_hypernetworks_mlps.{k}.layers.{j}", a, b)
    widths = [c] + [hidden] * (cfg["iou_head_depth"] - 1) + [n]
    for j, (a, b) in enumerate(zip(widths, widths[1:])):
        linear(f"{d}.iou_prediction_head.layers.{j}", a, b)
    norm(f"{d}.output_upscaling.1", c // 4)
    norm(f"{p}.mask_downscaling.1", m // 4)
    norm(f"{p}.mask_downscaling.4", m)
    for name, out, shape in ((f"{d}.output_upscaling.0", c // 4, (c, c // 4, 2, 2)),
                             (f"{d}.output_upscaling.3", c // 8, (c // 4, c // 8, 2, 2)),
                             (f"{p}.mask_downscaling.0", m // 4, (m // 4, 1, 2, 2)),
                             (f"{p}.mask_downscaling.3", m, (m, m // 4, 2, 2)),
                             (f"{p}.mask_downscaling.6", c, (c, m, 1, 1))):
        shapes.update({f"{name}.weight": shape, f"{name}.bias": (out,)})
    shapes.update({f"{d}.iou_token.weight": (1, c), f"{d}.mask_tokens.weight": (n, c),
                   f"{p}.pe_layer.positional_encoding_gaussian_matrix": (2, c // 2),
                   f"{p}.not_a_point_embed.weight": (1, c), f"{p}.no_mask_embed.weight": (1, c)})
    shapes.update({f"{p}.point_embeddings.{k}.weight": (1, c) for k in range(4)})
    generator = torch.Generator().manual_seed(5)
    return cfg, {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("changes", [
    dict(transformer_dim=24, num_heads=3, mlp_dim=7, depth=1, image_embedding_size=[3, 2], input_image_size=[33, 57]),
    dict(transformer_dim=40, num_heads=5, depth=3, iou_head_depth=2, iou_head_hidden_dim=5, num_multimask_outputs=2,
         attention_downsample_rate=4, mask_in_chans=12, image_embedding_size=[1, 6]),
    dict(num_heads=1, iou_head_depth=4, attention_downsample_rate=1)])
def test_sam_at_other_sizes(changes):
    cfg, state = random_sam(**changes)
    model = official.sam_mask_decoder(cfg, state)
    (h, w), c, n = cfg["image_embedding_size"], cfg["transformer_dim"], cfg["num_multimask_outputs"] + 1
    height, width = cfg["input_image_size"]
    point = torch.tensor([[[width - 0.5, 0.0]]])               # right border, centre of the first row
    sparse, dense = model.prompt(point, torch.tensor([[1]]))
    place = torch.tensor([2 * (width / width) - 1, 2 * (0.5 / height) - 1])
    phase = 2 * torch.pi * place @ state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    close(sparse[0, 0], torch.cat([phase.sin(), phase.cos()]) + state["prompt_encoder.point_embeddings.1.weight"][0])
    masks, iou = model(torch.randn(1, c, h, w), sparse, dense)
    assert masks.shape == (1, n, 4 * h, 4 * w) and iou.shape == (1, n) and masks.isfinite().all()


def test_released_sam_files_carry_more_and_a_prefix():
    extra = {"image_encoder.patch_embed.proj.weight": torch.zeros(2), "image_encoder.pos_embed": torch.zeros(1)}
    expected = sam_outputs(official.sam_mask_decoder(SAM_CONFIG, SAM_STATE))
    assert torch.equal(sam_outputs(official.sam_mask_decoder(SAM_CONFIG, SAM_STATE | extra)), expected)
    named = {f"module.{key}": value for key, value in (SAM_STATE | extra).items()}
    assert torch.equal(sam_outputs(official.sam_mask_decoder(SAM_CONFIG, named)), expected)


def test_sam_errors_are_one_line():
    def said(config=SAM_CONFIG, state=SAM_STATE):
        with pytest.raises(official.WeightsError) as error:
            official.sam_mask_decoder(config, state)
        assert "\n" not in str(error.value)
        return str(error.value)

    name = "mask_decoder.transformer.layers.1.mlp.lin1.weight"
    without = {key: value for key, value in SAM_STATE.items() if key != name}
    assert f"{name}: expected shape (64, 32), found nothing" in said(state=without)
    assert f"{name}: expected shape (64, 32), found shape (3, 2)" in said(state=SAM_STATE | {name: torch.zeros(3, 2)})
    assert "pixel_mean: expected no tensor of this name, found shape (3,)" in said(
        state=SAM_STATE | {"pixel_mean": torch.zeros(3)})
    headless = {key: value for key, value in SAM_CONFIG.items() if key != "num_heads"}
    assert "'num_heads': expected int above 0, found nothing" in said(headless)
    for field, value, expected in (("image_embedding_size", 7, "two whole numbers, found 7"),
                                   ("transformer_activation", "GELU", "'ReLU', found 'GELU'")):
        assert f"'{field}': expected {expected}" in said(SAM_CONFIG | {field: value})
    assert "cannot be divided into 5 heads" in said(SAM_CONFIG | {"num_heads": 5})


# ---- interaction-aware LoRA

@pytest.mark.parametrize("case", ["A", "B"])
def test_lora_and_its_gradients_are_the_official_ones(case):
    model = official.interaction_lora(LORA_CONFIGS[case], under(LORA, f"{case}/sd/"))
    assert type(model) is InteractionLoRALinear and not model.training
    x = LORA[f"{case}/in/x"].clone().requires_grad_()
    y = model(x)
    close(y, LORA[f"{case}/out/y"])
    close(model.route(x), LORA[f"{case}/out/route_weight"])
    y.backward(LORA[f"{case}/in/dy"])
    grads = {"x": x.grad, "lora_A.weight": model.lora_A.grad, "lora_route.weight": model.lora_route.grad}
    grads |= {f"lora_B{i}.weight": grad.t() for i, grad in enumerate(model.lora_B.grad)}
    for name, grad in grads.items():
        close(grad, LORA[f"{case}/grad/{name}"], atol=1e-4, rtol=1e-5)
    assert model.weight.grad is None and (model.bias is None or model.bias.grad is None)
    close(F.linear(x, model.weight, model.bias), LORA[f"{case}/out/base"])


@pytest.mark.parametrize("case", ["A", "B"])
def test_lora_in_bfloat16_is_close(case):
    model = official.interaction_lora(LORA_CONFIGS[case], under(LORA, f"{case}/sd/")).to(torch.bfloat16)
    x = LORA[f"{case}/in/x"].to(torch.bfloat16)
    expected = LORA[f"{case}/out_bf16/y"]
    close(model(x).float(), expected, atol=0.02 * float(expected.abs().max()))
    close(model.route(x).float(), LORA[f"{case}/out_bf16/route_weight"], atol=0.02)


@pytest.mark.parametrize("inside, out, rank, heads, bias",
                         [(7, 11, 1, 1, True), (13, 5, 5, 4, False), (9, 9, 2, 8, True)])
def test_lora_at_other_sizes_and_every_tensor_matters(inside, out, rank, heads, bias):
    torch.manual_seed(2)
    state = {"weight": torch.randn(out, inside), "lora_A.weight": torch.randn(rank, inside),
             "lora_route.weight": torch.randn(heads, inside)}
    state |= {f"lora_B{i}.weight": torch.randn(out, rank) for i in range(heads)}
    state |= {"bias": torch.randn(out)} if bias else {}
    config = {"in_features": inside, "out_features": out, "r": rank, "lora_nums": heads, "lora_alpha": 6, "bias": bias}
    x = torch.randn(2, 3, inside)

    def outputs(tensors):
        model = official.interaction_lora(config, tensors)
        with torch.no_grad():
            return model(x), model.route(x)

    y, route = outputs(state)
    gates = (x @ state["lora_route.weight"].T).softmax(-1)
    expected = F.linear(x, state["weight"], state.get("bias"))
    inner = x @ state["lora_A.weight"].T
    for i in range(heads):
        expected = expected + 6 / rank * gates[..., i:i + 1] * (inner @ state[f"lora_B{i}.weight"].T)
    close(y, expected, atol=1e-4)
    close(route, gates)
    for name, tensor in state.items():
        changed = outputs(state | {name: tensor + torch.randn_like(tensor)})[0]
        if (name, heads) == ("lora_route.weight", 1):          # one head's softmax is 1 whatever the router says
            close(changed, y)
        else:
            assert (changed - y).abs().max() > 1e-3, name


def test_lora_prefix_and_optional_fields():
    state, config = under(LORA, "B/sd/"), LORA_CONFIGS["B"]
    named = {f"base_model.model.model.layers.3.self_attn.q_proj.{key}": value for key, value in state.items()}
    close(official.interaction_lora(config, named)(LORA["B/in/x"]), LORA["B/out/y"])
    saved = {key: config[key] for key in ("r", "lora_nums", "lora_alpha")} | {"lora_dropout": 0.05, "bias": "none"}
    model = official.interaction_lora(saved, named)            # as an adapter's config file has it
    assert model.cfg == LoRAConfig(rank=8, heads=3, alpha=16.0, dropout=0.05)
    close(model(LORA["B/in/x"]), LORA["B/out/y"])
    saved = {"r": 3, "lora_nums": 3, "lora_alpha": 16, "bias": "none"}
    unbiased = official.interaction_lora(saved, under(LORA, "A/sd/"))
    close(unbiased(LORA["A/in/x"]), LORA["A/out/y"])


def test_lora_errors_are_one_line():
    state, config = under(LORA, "A/sd/"), LORA_CONFIGS["A"]

    def said(**changes):
        with pytest.raises(official.WeightsError) as error:
            kept = {key: value for key, value in config.items() if key not in changes.get("drop", ())}
            official.interaction_lora(kept | changes.get("config", {}), changes.get("state", state))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "lora_B2.weight: expected shape (28, 3), found nothing" in said(
        state={k: v for k, v in state.items() if k != "lora_B2.weight"})
    more = state | {"lora_B3.weight": torch.zeros(28, 3)}
    assert "lora_B3.weight: expected no tensor of this name" in said(state=more)
    assert "bias: expected no tensor of this name" in said(state=state | {"bias": torch.zeros(28)})
    assert "lora_A.weight: expected shape (4, 20), found shape (3, 20)" in said(config={"r": 4, "scaling": 4.0})
    assert "'scaling': expected 5.33" in said(config={"scaling": 2.0})
    assert "'lora_nums': expected int above 0, found '3'" in said(config={"lora_nums": "3"})
    assert "'r': expected int above 0, found 0" in said(config={"r": 0})
    assert "dropout in [0, 1)" in said(config={"lora_dropout": 1.5})
    assert "'out_features': expected int above 0, found nothing" in said(drop=("in_features", "out_features"), state={})
    assert "weight: expected shape (28, 20), found shape (28, 21)" in said(
        state=state | {"weight": torch.zeros(28, 21)})
