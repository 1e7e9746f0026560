"""Published names and numbers into our classes: the official implementations' outputs, and every way to be wrong."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from crab_mini.av_uie.log_mel import fbank, mel_banks
from crab_mini.config import AudioConfig, LLMConfig, VisionConfig, preset
from crab_mini.model.audio_encoder import BEATs, distance_buckets, fold_mask
from crab_mini.model.llm import LLM, rotary_table
from crab_mini.model.vision_encoder import ViT
from crab_mini.pretrained import weights as official
from crab_mini.pretrained.checked import published_name

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("beats", "clip_vit", "llama")
CLASSES = {"beats": BEATs, "clip_vit": ViT, "llama": LLM}
WITHOUT_EFFECT = r".*\.k_proj\.bias"             # adds the same to all scores of a query: the softmax cancels it


class Fixture:
    """One npz with its JSON: [key] -> tensor, `state`, `spare`, `config`, and `model(state)`."""

    def __init__(self, name: str):
        self.name, self.arrays = name, dict(np.load(GOLDEN / f"{name}.npz"))
        self.config = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
        self.state, self.spare = ({k.removeprefix(part): self[k] for k in self.arrays if k.startswith(part)}
                                  for part in ("sd/", "extra_sd/"))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.tensor(self.arrays[key])

    def model(self, state: dict | None = None, **config):
        return getattr(official, self.name)(self.config | config, self.state if state is None else state)

    @torch.no_grad()
    def outputs(self, model) -> dict[str, torch.Tensor]:
        """What the fixture holds as out/, by our module."""
        if self.name == "beats":
            mel, samples = fbank(self["in/wav"]), self["in/wav_padding_mask"].bool()
            b, b_mask = model(self["in/b_fbank"], self["in/b_padding_mask"].bool())
            wav, wav_mask = model(mel, fold_mask(samples, mel.shape[1]))
            return {"out/a": model(self["in/a_fbank"])[0], "out/b": b, "out/b_token_mask": b_mask,
                    "out/wav_nomask": model(mel)[0], "out/wav_mask": wav, "out/wav_token_mask": wav_mask}
        if self.name == "clip_vit":
            states = model.hidden_states(self["in/pixel_values"])
            return {f"out/hidden_states_{n}": state for n, state in enumerate(states)} | {
                "out/last_hidden_state": states[-1], "out/pooler_output": model.pooled(self["in/pixel_values"])}
        mask = self["in/pad_attention_mask"]
        return {"out/logits": model(self["in/ids"]), "out/hidden_last": model.encode(model.embed(self["in/ids"])),
                "out/pad_logits": model(self["in/pad_ids"], mask) * mask[..., None],
                "out/greedy": model.generate(self["in/prompt"], self["out/greedy"].shape[1])}


@pytest.fixture(scope="module", params=NAMES)
def golden(request) -> Fixture:
    return Fixture(request.param)


TOLERANCE = {"beats": 5e-5, "clip_vit": 5e-5, "llama": 1e-4}


def test_outputs_are_the_official_ones(golden):
    model = golden.model()
    assert type(model) is CLASSES[golden.name] and not model.training
    got = golden.outputs(model)
    compared = {key for key in golden.arrays if key.startswith("out/")} - {"out/attn_y", "out/hidden_1"}
    assert compared == set(got)                                 # the two others: see test_inner_values
    for key, value in got.items():
        torch.testing.assert_close(value.float(), golden[key].float(), atol=TOLERANCE[golden.name], rtol=0, msg=key)


def caught(module) -> list:
    kept = []
    module.register_forward_hook(lambda _, inputs, output: kept.append(output))
    return kept


@torch.no_grad()
def test_inner_values_of_beats():
    golden = Fixture("beats")
    model, bias = golden.model(), golden["aux/position_bias_T48"]
    places = {"mid/a_patch_conv": model.patches, "mid/a_patch_ln": model.patch_norm, "mid/a_proj": model.project,
              "mid/a_pos_conv": model.position, "mid/a_enc_ln": model.input_norm, "mid/a_layer0": model.layers[0],
              "mid/a_layer1": model.layers[1]}
    kept = {key: caught(module) for key, module in places.items()}
    model(golden["in/a_fbank"])
    for key, (value,) in kept.items():
        torch.testing.assert_close(value, golden[key], atol=5e-5, rtol=0, msg=key)
    buckets = distance_buckets(48, 32, 64, bias.device)
    torch.testing.assert_close(model.distance_bias(buckets).permute(2, 0, 1), bias, atol=0, rtol=0)
    x = golden["in/attn_x"].transpose(0, 1)
    y = model.layers[0].attention(x, bias[:, :10, :10], None)
    torch.testing.assert_close(y.transpose(0, 1), golden["out/attn_y"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("suffix, buckets, most", [("", 32, 64), ("_published", 320, 800)])
def test_distance_buckets_are_the_official_ones(suffix, buckets, most):
    golden = Fixture("beats")
    far = int(golden["aux/rel" + suffix].max())
    table = distance_buckets(far + 1, buckets, most, torch.device("cpu"))
    assert (torch.cat((table[-1, :-1], table[0])) == golden["aux/rel_bucket" + suffix]).all()


@torch.no_grad()
def test_inner_values_of_llama():
    golden = Fixture("llama")
    model = golden.model()
    kept = caught(model.blocks[0])
    model(golden["in/ids"])
    torch.testing.assert_close(kept[0], golden["out/hidden_1"], atol=1e-4, rtol=0)
    for table, key in zip(rotary_table(golden["aux/rope_pos"][None], 12, 10000.0), ("cos", "sin")):
        torch.testing.assert_close(table[0, 0].repeat(1, 2), golden["aux/rope_" + key], atol=1e-6, rtol=0)


def test_fbank_is_the_official_one():
    golden = Fixture("fbank")
    for name in (key.removeprefix("wav/") for key in golden.arrays if key.startswith("wav/")):
        got = fbank(golden["wav/" + name][None])[0]
        assert len(got) == int(golden["nframes/" + name])
        frames = golden["frames/" + name] if "frames/" + name in golden.arrays else slice(None)
        torch.testing.assert_close(got[frames], golden["fbank/" + name], atol=1e-4, rtol=0, msg=name)
        if "fbank_sum/" + name in golden.arrays:
            torch.testing.assert_close(got.double().sum(0), golden["fbank_sum/" + name], atol=0.05, rtol=0)
    torch.testing.assert_close(mel_banks(torch.device("cpu")).T, golden["aux/mel_banks"], atol=2e-5, rtol=0)


def test_every_tensor_matters(golden):
    """Perturbing any one tensor alone changes an output or is refused, save those without effect."""
    before = golden.outputs(golden.model())
    for name, tensor in golden.state.items():
        try:
            after = golden.outputs(golden.model(golden.state | {name: tensor + 0.1 * torch.randn_like(tensor)}))
        except official.WeightsError as error:
            assert "relative_attention_bias" in name and "expected the same numbers" in str(error)
            continue
        change = max(float((after[key].float() - before[key].float()).abs().max()) for key in before)
        if re.fullmatch(WITHOUT_EFFECT, name):
            assert change < 10 * TOLERANCE[golden.name], name
        else:
            assert change > 10 * TOLERANCE[golden.name], name


def test_the_shared_table_of_beats_matters():
    golden = Fixture("beats")
    tables = {name: tensor + 0.1 for name, tensor in golden.state.items() if "relative_attention_bias" in name}
    first = next(iter(tables.values()))
    first[0] += 1.0                                             # all rows alike would cancel in the softmax
    mel = golden["in/a_fbank"]
    moved = golden.model(golden.state | dict.fromkeys(tables, first))(mel)[0] - golden.model()(mel)[0]
    assert len(tables) == 2 and moved.abs().max() > 1e-3


def test_missing_wrong_and_surplus_tensors_are_named(golden):
    for name, tensor in golden.state.items():
        short = f"{re.escape(name)}: expected shape {re.escape(str(tuple(tensor.shape)))}, found "
        with pytest.raises(official.WeightsError, match=short + "nothing"):
            golden.model({k: v for k, v in golden.state.items() if k != name})
        with pytest.raises(official.WeightsError, match=short + re.escape(f"shape {(2, *tensor.shape)}")):
            golden.model(golden.state | {name: torch.stack((tensor, tensor))})
    with pytest.raises(official.WeightsError, match=short + "list"):
        golden.model(golden.state | {name: tensor.tolist()})
    with pytest.raises(official.WeightsError, match=f"{re.escape(name)}: expected floating-point.*torch.int64"):
        golden.model(golden.state | {name: tensor.long()})
    for strange in ("encoder.layers.99.fc1.weight", "predictor_head.weight", "position_ids"):
        with pytest.raises(official.WeightsError, match=f"{strange}: expected no tensor of this name.*shape \\(3,\\)"):
            golden.model(golden.state | {strange: torch.zeros(3)})


def test_spare_tensors_are_accepted_by_name_and_change_nothing(golden):
    spare = golden.spare | ({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2), "logit_scale": torch.ones(()),
                             "visual_projection.weight": torch.ones(2), "text_projection.weight": torch.ones(2)}
                            if golden.name == "clip_vit" else {})
    assert spare
    before, after = golden.outputs(golden.model()), golden.outputs(golden.model(golden.state | spare))
    assert all((before[key] == after[key]).all() for key in before)


@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model.model.tower."])
def test_prefixes_come_and_go(golden, prefix):
    before = golden.outputs(golden.model())
    state = {prefix + name: tensor for name, tensor in (golden.spare | golden.state).items()}
    bare = {prefix + name.removeprefix("vision_model.").removeprefix("model."): tensor
            for name, tensor in (golden.spare | golden.state).items()}
    for variant in (state, bare):
        after = golden.outputs(golden.model(variant))
        assert all((before[key] == after[key]).all() for key in before)
    lost = next(reversed(state))                                # one name with a prefix of its own is not found
    with pytest.raises(official.WeightsError, match=f"{re.escape(lost)}: expected.*found nothing"):
        golden.model({("other." + k if k == lost else k): v for k, v in state.items()})


def test_weights_are_copies_in_fp32(golden):
    for dtype in (torch.float32, torch.bfloat16):
        state = {name: tensor.clone().to(dtype) for name, tensor in golden.state.items()}
        with torch.no_grad():
            for p in golden.model(state).parameters():
                assert p.dtype == torch.float32
                p.zero_()
        assert all(tensor.any() for tensor in state.values())


@pytest.mark.parametrize("name, field, value, message", [
    ("beats", "deep_norm", False, "'deep_norm': expected True, found False"),
    ("beats", "layer_norm_first", True, "'layer_norm_first': expected False, found True"),
    ("beats", "encoder_attention_heads", 5, "multiple of heads"),
    ("beats", "num_buckets", "32", "'num_buckets': expected int above 0, found '32'"),
    ("clip_vit", "hidden_act", "gelu", "'hidden_act': expected 'quick_gelu', found 'gelu'"),
    ("clip_vit", "num_hidden_layers", 0, "'num_hidden_layers': expected int above 0, found 0"),
    ("llama", "rope_scaling", {"factor": 2.0}, "'rope_scaling': expected None"),
    ("llama", "tie_word_embeddings", True, "'tie_word_embeddings': expected False, found True"),
    ("llama", "head_dim", 16, "'head_dim': expected 12, found 16"),
    ("llama", "num_key_value_heads", 3, "heads of kv_heads"),
    ("llama", "vocab_size", True, "'vocab_size': expected int above 0, found True"),
])
def test_another_architecture_is_refused(name, field, value, message):
    with pytest.raises(official.WeightsError, match=f"weights.{name}: config.*{re.escape(message)}"):
        Fixture(name).model(**{field: value})


def test_absent_fields():
    for name, field in (("beats", "conv_pos"), ("clip_vit", "image_size"), ("llama", "vocab_size")):
        golden = Fixture(name)
        golden.config.pop(field)
        with pytest.raises(official.WeightsError, match=f"'{field}': expected int above 0, found nothing"):
            golden.model()
    beats, llama, clip = Fixture("beats"), Fixture("llama"), Fixture("clip_vit")
    beats.config.pop("gru_rel_pos")                             # absent in BEATs means off
    with pytest.raises(official.WeightsError, match="'gru_rel_pos': expected True, found False"):
        beats.model()
    for field in ("num_key_value_heads", "rope_theta"):         # as LLaMA-2's config.json
        llama.config.pop(field)
    assert torch.equal(llama.model()(llama["in/ids"]), Fixture("llama").model()(llama["in/ids"]))
    assert llama.model(rope_parameters={"rope_theta": 500.0, "rope_type": "default"}).cfg.rope_theta == 500.0
    clip.config = {"vision_config": clip.config}
    assert clip.model().cfg.layers == 3


def published(module, tables) -> dict[str, torch.Tensor]:
    return {published_name(name, tables): value.clone() for name, value in module.state_dict().items()}


def test_grouped_query_attention_odd_kernels_and_odd_sizes_go_through():
    """Our own modules under published names come back the same; that they compute the right thing is their tests'."""
    torch.manual_seed(0)
    llm = LLM(LLMConfig(vocab_size=31, dim=30, layers=2, heads=5, kv_heads=1, ffn_dim=7, norm_eps=1e-6))
    again = official.llama({"vocab_size": 31, "hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 5,
                            "num_key_value_heads": 1, "intermediate_size": 7, "rms_norm_eps": 1e-6},
                           published(llm, official.LLAMA_NAMES))
    ids = torch.randint(31, (2, 9))
    assert again.cfg == llm.cfg and torch.equal(again(ids), llm(ids))
    vit = ViT(VisionConfig(image=23, patch=5, dim=27, layers=1, heads=3, ffn_dim=11))
    again = official.clip_vit({"image_size": 23, "patch_size": 5, "hidden_size": 27, "num_hidden_layers": 1,
                               "num_attention_heads": 3, "intermediate_size": 11}, published(vit, official.CLIP_NAMES))
    pixels = torch.randn(1, 3, 23, 23)
    assert torch.equal(again.pooled(pixels), vit.pooled(pixels))
    cfg = AudioConfig(embed=5, dim=18, layers=3, heads=3, ffn_dim=7, conv_pos=7, conv_pos_groups=2, buckets=9,
                      max_distance=21)
    ours = BEATs(cfg)
    state, table = published(ours, official.BEATS_NAMES), "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    state |= {table.format(n): state[table.format(0)] for n in (1, 2)}
    again = official.beats(Fixture("beats").config | {
        "embed_dim": 5, "encoder_embed_dim": 18, "encoder_layers": 3, "encoder_attention_heads": 3,
        "encoder_ffn_embed_dim": 7, "conv_pos": 7, "conv_pos_groups": 2, "num_buckets": 9, "max_distance": 21}, state)
    mel = torch.randn(1, 40, 128)
    assert again.cfg == cfg and torch.equal(again(mel)[0], ours(mel)[0])


def test_layers_of_a_large_clip_are_crabs():
    golden = Fixture("clip_vit")
    with pytest.raises(official.WeightsError, match="layers.3.self_attn.*found nothing|encoder.layers.3"):
        golden.model(num_hidden_layers=24)
    layer = {k: v for k, v in golden.state.items() if ".layers.0." in k}
    state = golden.state | {k.replace(".0.", f".{n}.", 1): v for n in range(24) for k, v in layer.items()}
    cfg = golden.model(state, num_hidden_layers=24).cfg
    assert (cfg.mask_layers, cfg.llm_layer) == ((14, 22), 23)


@pytest.mark.parametrize("part, module, expected", [("llm", LLM, 6.738e9), ("vision", ViT, 303e6),
                                                    ("audio", BEATs, 90e6)])
def test_the_papers_sizes_count_as_published(part, module, expected):
    with torch.device("meta"):
        count = sum(p.numel() for p in module(getattr(preset("paper"), part)).parameters())
    assert count == pytest.approx(expected, rel=0.01)
