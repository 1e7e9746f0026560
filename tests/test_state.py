"""Files of a run that are intact and wrong: one line with file and field, before anything is built."""

import json
import os
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from crab_mini import bundle
from crab_mini.av_uie.log_mel import fbank
from crab_mini.config import ConfigError, override, preset
from crab_mini.config_check import SECOND_FRAMES, check
from crab_mini.errors import CheckpointError, NonFiniteLoss, WeightsError
from crab_mini.pretrained.files import load_file
from crab_mini.pretrained.weights import clip_vit, llama
from crab_mini.tokenizer import Tokenizer

from . import small_av_uie
from .test_training import CFG, Batches, Toy, interrupt, run_toy

HOME = Path(train.__file__).parent


@pytest.fixture(scope="module")
def whole():
    """The content of a good model file, without its head."""
    tokenizer = Tokenizer.train(["a dog is seen at second 3"] * 9, 320)
    cfg = override(preset("nano"), "llm.vocab_size", str(tokenizer.size))
    torch.manual_seed(0)
    crab = bundle.build(cfg, tokenizer).with_lora()
    return {"config": cfg.to_dict(), "model": crab.state_dict(), "facts": {"tasks": ["ave"]},
            "tokenizer": torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8)}


def put(content: dict, place: str, value) -> dict:
    """A copy of nested dicts with one place changed; "section.field" or "model/name"; ... removes it."""
    first, _, rest = place.partition(".")
    if rest:
        value = put(content[first], rest, value)
    changed = {name: old for name, old in content.items() if name != first}
    return changed if value is ... else changed | {first: value}


def save(path: Path, content: dict, kind: str = bundle.KIND) -> Path:
    torch.save({"program": "crab_mini", "version": 1, "kind": kind} | content, path)
    return path


WEIGHT = "visual_qformer.queries"           # a parameter of the file, (4,64)
MODEL_FILES = [
    ("config", ..., "config: expected named values, found nothing"),
    ("config", [1], "config: expected named values, found list"),
    ("config.llm", 3, "llm: expected a section, found int"),
    ("config.llm", ..., "llm.vocab_size: expected a value, found nothing"),
    ("config.llm.rope_theta", ..., "llm.rope_theta: expected a value, found nothing"),
    ("config.lora.alpha", ..., "lora.alpha: expected a value, found nothing"),
    ("config.llm.layers", 10 ** 5, "llm.layers: expected at most the "),
    ("config.llm.layers", 10 ** 400, "llm.layers: expected at most 2147483647"),
    ("config.llm.layers", True, "llm.layers: expected a whole number, found True"),
    ("config.llm.layers", 2.0, "llm.layers: expected a whole number, found 2"),
    ("config.llm.dim", "x" * 10 ** 6, "llm.dim: expected a whole number, found xxx"),
    ("config.llm.dim", 96000, "model.llm"),
    ("config.llm.norm_eps", float("nan"), "llm.norm_eps: expected a number above 0, found nan"),
    ("config.llm.rope_theta", None, "llm.rope_theta: expected a number, found none"),
    ("config.llm.ffn_dim", 2 ** 31 - 1, "model.llm"),
    ("config.llm.heads", 5, "dim must be a multiple of 2 .* heads"),
    ("config.mask.scales", 10 ** 6, "mask.scales: no such field"),
    ("config.mask.tokens", 0, "mask.tokens: no such field"),
    ("config.mask.dim", 12, "mask.dim: expected a multiple of"),
    ("config.vision.image", 65, "vision.image: expected a multiple of vision.patch 8, found 65"),
    ("config.vision.mask_layers", (1,), "vision.mask_layers: expected two whole numbers, found 1"),
    ("config.vision.mask_layers", (1, 9), "vision.mask_layers: expected at most 2"),
    ("config.visual_qformer.grid", (9, 9), "visual_qformer.grid: expected at most 8,8, the patches, found 9,9"),
    ("config.audio_qformer.grid", (7, 1), "audio_qformer.grid: expected at most 6,8"),
    ("config.audio.conv_pos_groups", 3, "audio.dim: expected a multiple of audio.conv_pos_groups 3"),
    ("config.audio.patch", 99, "audio.patch: expected at most 98"),
    ("config.reasoning", "perhaps", "reasoning: expected on or off, found perhaps"),
    ("config.lora.heads", 10 ** 9, "model.llm.blocks.0.attention.q_proj.lora_route: expected \\[1000000000, 96\\]"),
    ("config.stranger", {}, "stranger: no such section"),
    ("model", 3, "model: expected names and whole tensors, found 3"),
    ("model", {}, "llm.layers: expected at most the 0 tensors"),
    ("model", {"w": torch.ones(1).expand(10 ** 12)}, "model: expected names and whole tensors"),
    ("model", {"w": torch.ones(2, device="meta")}, "model: expected names and whole tensors"),
    ("model", {3: torch.ones(2)}, "model: expected names and whole tensors"),
    ("model", dict.fromkeys("abc", torch.ones(9)), "model: expected names and whole tensors"),
    ("model", {"w": torch.eye(3).to_sparse()}, "model: expected names and whole tensors"),
    ("tokenizer", ..., "tokenizer: expected a vector of bytes, found nothing"),
    ("tokenizer", torch.ones(3), "tokenizer: expected a vector of bytes, found Tensor"),
    ("tokenizer", torch.zeros(300, dtype=torch.uint8), "tokenizer: expected a sentencepiece model"),
    ("facts", ..., "facts: expected named values, found nothing"),
    ("facts", {"tasks": "ave"}, "tasks: expected a list of texts, found 'ave'"),
    ("facts", {"data": 3}, "data: expected text, found 3"),
]


@pytest.mark.parametrize("place, value, line", MODEL_FILES,
                         ids=[f"{place}={str(value)[:20]}" for place, value, _ in MODEL_FILES])
def test_a_model_file_with_wrong_content_is_one_line(whole, tmp_path, place, value, line):
    path = save(tmp_path / "crab.pt", put(whole, place, value))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=line) as found:
        bundle.load(path)
    message = str(found.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    assert time.process_time() - began < 20


def test_a_parameter_of_another_shape_or_type_or_none_is_named(whole, tmp_path):
    state = whole["model"]
    for value, line in ((torch.ones(4, 65), f"model.{WEIGHT}: expected \\[4, 64\\], found \\[4, 65\\]"),
                        (torch.ones(4, 64).int(), f"model.{WEIGHT}: expected torch.float32, found torch.int32"),
                        (None, f"model.{WEIGHT}: expected \\[4, 64\\], found nothing")):
        changed = {name: tensor for name, tensor in state.items() if name != WEIGHT}
        if value is not None:
            changed[WEIGHT] = value
        with pytest.raises(CheckpointError, match=line):
            bundle.load(save(tmp_path / "crab.pt", whole | {"model": changed}))


def test_a_program_asks_for_the_facts_that_it_needs(whole, tmp_path):
    facts = bundle.load(save(tmp_path / "crab.pt", whole))[2]
    with pytest.raises(CheckpointError, match="crab.pt: data: expected text, found nothing"):
        bundle.require(tmp_path / "crab.pt", facts)


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=f"{path}: is no regular file"):
            bundle.load(path)


def test_a_file_that_unpacks_to_more_than_itself_is_refused(whole, tmp_path):
    path = save(tmp_path / "crab.pt", whole)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(CheckpointError, match="records are larger than the file"):
        bundle.load(tmp_path / "bomb.pt")


def test_the_frames_of_a_second_are_those_of_the_log_mel():
    assert fbank(torch.zeros(1, 16000)).shape[1] == SECOND_FRAMES
    with pytest.raises(ConfigError, match="^seed: expected a whole number, found 1.5"):
        check(replace(preset("nano"), seed=1.5))


# ---- checkpoints of stages -----------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path) -> Path:
    """A stage that was stopped at step 5 of 20."""
    from crab_mini.errors import Interrupted
    with pytest.raises(Interrupted):
        run_toy(tmp_path, batches=Batches(4, interrupt()))
    return tmp_path / "toy.pt"


STAGE_FILES = [
    ("step", ..., "step: expected a whole number of at least 0, found nothing"),
    ("step", 10 ** 9, "step: expected at most 20, found 1000000000"),
    ("step", -1, "step: expected a whole number of at least 0, found -1"),
    ("step", 20, "done: expected True at step 20 of 20, found False"),
    ("step", True, "step: expected a whole number"),
    ("done", True, "done: expected False at step 5 of 20, found True"),
    ("done", ..., "done: expected true or false, found nothing"),
    ("done", "no", "done: expected true or false, found 'no'"),
    ("seconds", float("inf"), "seconds: expected a number of at least 0, found inf"),
    ("seconds", ..., "seconds: expected"),
    ("module", ..., "module: expected names and whole tensors, found nothing"),
    ("module", {}, "seen: expected .., found nothing"),
    ("optimizer", ..., "optimizer: expected a list of named values, found nothing"),
    ("optimizer", [], "the optimizer's state does not fit: expected the state of 2 optimizers"),
    ("optimizer", [{}, {}], "the optimizer's state does not fit: expected the state of 1 parameters"),
    ("optimizer", [{"state": {0: {"momentum_buffer": torch.ones(3)}}}, {"state": {}}],
     "momentum_buffer: expected floats of shape \\[48, 32\\]"),
    ("optimizer", [{"state": {0: {}}}, {"state": {}}], "expected momentum_buffer of each parameter"),
    ("rng", [], "rng: expected the random numbers' states, found list"),
    ("rng", [{"cpu": torch.zeros(9, dtype=torch.uint8)}], "rng: expected the random numbers' states, found others"),
    ("made_with", 3, "made_with: expected named values, found 3"),
    ("config", ..., "config: expected named values, found nothing"),
    ("kind", ["toy"], "expected a checkpoint of kind toy, found"),
    ("version", ..., "expected a checkpoint of version 1, found none"),
]


@pytest.mark.parametrize("place, value, line", STAGE_FILES,
                         ids=[f"{place}={str(value)[:20]}" for place, value, _ in STAGE_FILES])
def test_a_stage_file_with_wrong_content_is_one_line_and_stays(stopped, place, value, line):
    content = put(torch.load(stopped, weights_only=True), place, value)
    torch.save(content, stopped)
    before = stopped.read_bytes()
    with pytest.raises(CheckpointError, match=line) as found:
        run_toy(stopped.parent, batches=Batches(5, lambda: pytest.fail("it trained")), resume=True)
    assert str(found.value).startswith(f"{stopped}: ") and "\n" not in str(found.value)
    assert stopped.read_bytes() == before


def test_rates_come_from_this_run_and_not_from_the_file(stopped):
    content = torch.load(stopped, weights_only=True)
    for part in content["optimizer"]:
        for group in part["param_groups"]:
            group["weight_decay"] = 1e9
    torch.save(content, stopped)
    changed, _ = run_toy(stopped.parent, resume=True)
    plain, _ = run_toy(stopped.parent / "plain")
    assert all(torch.equal(a, b) for a, b in zip(changed.state_dict().values(), plain.state_dict().values()))


def test_a_resumed_stage_says_what_it_computes_with_otherwise(stopped, capsys):
    content = torch.load(stopped, weights_only=True)
    assert set(content["made_with"]) == {"threads", "torch", "processes"}
    content["made_with"]["threads"] = "99"
    torch.save(content, stopped)
    capsys.readouterr()
    run_toy(stopped.parent, resume=True)
    said = capsys.readouterr().out
    assert "toy: goes on with another rounding than before (threads: 99 there" in said and "torch" not in said


@pytest.mark.parametrize("before, asked, variable, resume, expected", [
    ("torch", "", "", True, "torch"), ("torch", "auto", "", True, "torch"), ("torch", "cpp", "", True, "cpp"),
    ("torch", "", "cpp", True, ""), ("torch", "", "", False, ""), ("strange", "", "", True, ""),
    (None, "", "", True, "")])
def test_a_resumed_stage_keeps_its_kernel_unless_another_is_asked_for(tmp_path, monkeypatch, before, asked, variable,
                                                                      resume, expected):
    monkeypatch.setenv("CRAB_KERNEL", variable)
    fields = {"module": {}, "step": 3, "seconds": 1.0, "done": False, "config": {}}
    save(tmp_path / "instruct.pt", fields | ({"made_with": {"kernel": before}} if before else {}), "instruct")
    run = train.Run(tmp_path, resume=resume)
    assert train.kernel_to_use("instruct", Namespace(kernel=asked), run) == expected


def test_gradients_whose_squares_overflow_are_said_to_be_not_finite(tmp_path):
    module = Toy()
    module.hidden.weight.register_hook(lambda g: torch.full_like(g, 1e30))
    with pytest.raises(NonFiniteLoss, match="step 0: the gradient of all parameters together is not finite, samples"):
        run_toy(tmp_path, replace(CFG, muon_lr=0.0), module=module)


def test_a_curve_that_is_none_is_begun_anew(stopped):
    def enough():
        raise ValueError("enough")

    curve = stopped.with_suffix(".jsonl")
    for content in (b"[" * 100000, b"\xff\n", b"3\n", b'{"seconds": 3}\n'):
        curve.write_bytes(content)
        with pytest.raises(ValueError, match="enough"):
            run_toy(stopped.parent, batches=Batches(6, enough), resume=True)


# ---- programs whose reader goes away -------------------------------------------------------------


def test_a_closed_pipe_ends_a_program_quietly(tmp_path):
    """As in `... | head -1`: here nobody reads at all."""
    small_av_uie.build(tmp_path / "data")
    for words, status in ((["train.py", "--help"], 0), (["eval.py", "--help"], 0),
                          (["-m", "crab_mini.av_uie", "check", tmp_path / "data"], 141),
                          (["-c", "import train, crab_mini.errors as e; train.train_and_evaluate = print;"
                            "import sys; sys.exit(e.run_program(lambda: train.main('said')))"], 141)):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([sys.executable, *words], cwd=HOME, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert done.returncode == status, done.stderr
        assert not any(word in done.stderr for word in ("Traceback", "Broken pipe", "Exception")), done.stderr


# ---- published weights ---------------------------------------------------------------------------


def test_an_index_names_weight_files_beside_it_and_nothing_else(tmp_path):
    folder = tmp_path / "hub" / "snapshots" / "one"
    folder.mkdir(parents=True)
    (tmp_path / "hub/blobs").mkdir()
    index = folder / "model.bin.index.json"
    torch.save({"w": torch.ones(2)}, tmp_path / "far.bin")
    torch.save({"w": torch.ones(2)}, tmp_path / "hub/blobs/abc")
    (folder / "link.bin").symlink_to(tmp_path / "far.bin")
    (folder / "circle.bin").symlink_to(folder / "circle.bin")
    (folder / "cached.bin").symlink_to(tmp_path / "hub/blobs/abc")
    os.mkfifo(folder / "pipe.bin")
    for name, line in (("x" * 300 + ".bin", "beside it, found none"), ("link.bin", "a link that leads elsewhere"),
                       ("circle.bin", "found none"), ("pipe.bin", "found none"),
                       ("../far.bin", "expected weight files beside the index"),
                       (index.name, "expected weight files beside the index")):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(WeightsError, match=line):
            load_file(index)
    index.write_text(json.dumps({"weight_map": {"w": "cached.bin"}}))
    assert load_file(index)["w"].tolist() == [1, 1]
    index.write_text("[" * 100000)
    with pytest.raises(WeightsError, match="expected a JSON file"):
        load_file(index)


def test_a_published_configuration_cannot_ask_for_more_than_the_file_holds():
    sizes = dict(hidden_size=8, num_attention_heads=2, vocab_size=9, intermediate_size=8)
    for config, line in ((sizes | {"num_hidden_layers": 10 ** 9}, "num_hidden_layers': expected at most the 1 tensors"),
                         (sizes | {"rope_parameters": 3}, "rope_parameters': expected fields, found int"),
                         (sizes | {"num_hidden_layers": 1, "vocab_size": 10 ** 18}, "config: "),
                         ({}, "hidden_size': expected int above 0, found nothing")):
        with pytest.raises(WeightsError, match=line):
            llama(config, {"w": torch.ones(1)})
    with pytest.raises(WeightsError, match="vision_config': expected fields, found list"):
        clip_vit({"vision_config": [1]}, {})
