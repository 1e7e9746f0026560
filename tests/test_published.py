"""Training that starts from published weights: what is skipped, what follows from the files, what is refused."""

import re
from pathlib import Path

import pytest
import torch

import train
from crab_mini import bundle
from crab_mini.config import ConfigError, override, preset
from crab_mini.model.crab import CLIP_MEAN, SpecialIds
from crab_mini.model.lora import InteractionLoRALinear
from crab_mini.options import STAGES, arguments
from crab_mini.pretrained import options as published
from crab_mini.pretrained import weights as official
from crab_mini.tokenizer import MASKS, Tokenizer

from . import small_weights as small

QUICK = ["--preset", "nano", "--precision", "fp32", "--max-steps", "2", "--world.clips", "9", "--world.test_clips", "12",
         "--world.rows_per_task", "1", *(f"--{name}.batch=4" for name in STAGES)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """One small file of each kind."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    words = small.words(root / "words.model")
    return {"vision": small.clip(root / "clip"), "audio": small.beats(root / "beats"), "tokenizer": words,
            "llm": small.llama(root / "llama", Tokenizer.load(words).known)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test in a folder of its own, with one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAB_KERNEL", "torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def flags(weights: dict[str, Path], *parts: str) -> list[str]:
    made = [word for part in parts for word in (f"--{part}-weights", str(weights[part]))]
    return made + (["--tokenizer", str(weights["tokenizer"])] if "llm" in parts else [])


def trained_in(out: str) -> set[str]:
    return {path.stem for path in Path(out).glob("*.jsonl")}


def test_all_three_parts_from_published_weights(weights, capsys):
    assert train.main([*QUICK, *flags(weights, "vision", "audio", "llm"), "--out", "out"]) == 0
    said = capsys.readouterr().out
    for stage, part in (("see", "vision"), ("hear", "audio"), ("text", "llm"), ("speak", "llm"), ("segment", "llm")):
        assert f"{stage}: skipped, published weights are taken from {weights[part]}" in said
    assert trained_in("out") == {"align", "instruct"}
    crab, tokenizer, _ = bundle.load(Path("out/crab.pt"))
    assert crab.cfg.vision == small.VISION and crab.cfg.audio == small.AUDIO and crab.cfg.llm.kv_heads == 2
    torch.testing.assert_close(crab.pixel_mean.flatten(), torch.tensor(CLIP_MEAN))
    for part, build in published.BUILD.items():             # frozen weights are the file's, through all stages
        file = build(official.load_config(weights[part]), official.load_file(weights[part])).state_dict()
        ours = {name.replace(".base.", "."): value for name, value in getattr(crab, part).state_dict().items()}
        assert all(torch.equal(ours[name], value) for name, value in file.items()), part
    assert len(file["embed.weight"]) == tokenizer.known < tokenizer.size == crab.cfg.llm.vocab_size
    for rows in crab.llm.added():                           # the tags have learned: they are not one row any more
        assert len(rows) == tokenizer.size - tokenizer.known and len(rows.unique(dim=0)) > len(MASKS)
    assert train.main([*QUICK, *flags(weights, "vision", "audio", "llm"), "--out", "out"]) == 0
    assert "align: taken from" in capsys.readouterr().out
    state = torch.load(weights["vision"])                   # other weights in a file of the same name
    torch.save(state | {"vision_model.pre_layrnorm.bias": state["vision_model.pre_layrnorm.bias"] + 1}, "other.bin")
    Path("config.json").write_bytes((weights["vision"].parent / "config.json").read_bytes())
    other = {**weights, "vision": Path("other.bin")}
    assert train.main([*QUICK, *flags(other, "vision", "audio", "llm"), "--out", "out"]) == 2
    assert "made with another configuration (weights.vision" in capsys.readouterr().err


def test_published_encoders_with_an_llm_of_ones_own(weights):
    assert train.main([*QUICK, *flags(weights, "vision", "audio"), "--out", "out", "--vision.llm_layer", "3"]) == 0
    assert trained_in("out") == set(STAGES) - {"see", "hear"}
    crab, _, _ = bundle.load(Path("out/crab.pt"))
    assert crab.cfg.vision.llm_layer == 3 and crab.llm.added() == []


@pytest.mark.parametrize("words, line", [
    (["--vision-weights", "nowhere.bin"], "--vision-weights: nowhere.bin: expected a file, found none"),
    (["--llm-weights", "x"], "--llm-weights needs --tokenizer FILE"),
    (["--tokenizer", "x"], "--llm-weights needs --tokenizer FILE"),
    (["VISION", "--vision.dim", "64"], "--vision.dim 64: expected 32, as in --vision-weights"),
    (["VISION", "--vision.llm_layer", "4"], "--vision.llm_layer: expected at most 3"),
    (["LLM", "--tokenizer", "other.model"], "--tokenizer other.model: expected"),
    (["LLM", "--tokenizer", "none.model"], "--tokenizer none.model: expected a file, found none"),
    (["--preset", "paper", "VISION"], "--preset paper is trained from published weights only: give --audio-weights, "
                                      "--llm-weights"),
    (["--llm.dim", "65536", "--llm.ffn_dim", "999999", "--llm.layers", "9"], "GB are free on cpu"),
])
def test_what_cannot_be_is_one_line(weights, words, line, capsys):
    small.words(Path("other.model"), 350)
    places = {"VISION": flags(weights, "vision"), "LLM": ["--llm-weights", str(weights["llm"])]}
    given = ["--preset", "nano"] * ("paper" not in words) + sum((places.get(word, [word]) for word in words), [])
    assert train.main([*given, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and error.startswith("train.py: ")


def test_a_file_too_large_for_the_memory_is_refused_before_it_is_read(weights, monkeypatch):
    monkeypatch.setattr(published, "free_memory", lambda device: 10_000)
    options, cfg = arguments("", ["--preset", "nano", *flags(weights, "vision")])
    with pytest.raises(ConfigError, match=r"--vision-weights .* takes at least 0.0 GB of memory, 0.0 GB are free"):
        published.load(cfg, options)
    with pytest.raises(ConfigError, match=r"training these sizes \(0.00 B parameters\) takes at least"):
        published.feasible(override(cfg, "llm.vocab_size", "640"), arguments("", ["--preset", "nano"])[0],
                           SpecialIds(4, 5, (6, 11), 3), torch.device("cpu"))


def test_memory_is_what_the_system_tells():
    free = published.free_memory(torch.device("cpu"))
    lines = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    total = int(re.search(r"MemTotal:\s*(\d+)", lines)[1]) * 1024 if lines else free
    assert 0 < free <= total


def test_the_paper_s_crab_is_built_and_run_forward_without_memory(monkeypatch):
    cfg, ids = preset("paper"), SpecialIds(4, 5, (6, 11), 3)
    crab = published.outline(cfg, ids)
    assert {p.device.type for p in crab.parameters()} == {"meta"}
    lora = sum(p.numel() for n, p in crab.named_parameters() if "lora_" in n)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in crab.named_children()}
    for part, expected in {"llm": 6.738e9 + lora, "vision": 303e6, "audio": 90e6}.items():
        assert count[part] == pytest.approx(expected, rel=0.01), part
    layers = [m for m in crab.modules() if isinstance(m, InteractionLoRALinear)]
    assert len(layers) == 7 * cfg.llm.layers and all(m.lora_B.shape[:2] == (3, 8) for m in layers)
    frames = torch.empty(2, 3, 224, 224, dtype=torch.uint8, device="meta")
    seen, heard = crab.encode_frames(frames), crab.encode_audio(torch.empty(2, 98, 128, device="meta"))
    assert seen.shape == (2, 3, 256, 1024) and heard.shape == (2, 48, 768)
    visual, audio = crab.visual_qformer(seen[:, 2], 16, 16), crab.audio_qformer(heard, 6, 8)
    assert visual.shape == audio.shape == (2, 32, 4096)
    text = crab.llm.embed(torch.zeros(2, 9, dtype=torch.long, device="meta"))
    states = crab.llm.encode(torch.cat([visual, audio, text], 1))
    assert states.shape == (2, 73, 4096) and crab.llm.head(states).shape == (2, 73, 32000)
    assert crab.mask_logits(states[:, -6:], seen[:, :2]).shape == (2, 224, 224)
