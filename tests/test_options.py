"""The command line: what it says, that all of it is read, and the one line for what cannot be meant."""

import argparse
import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from crab_mini import options
from crab_mini.config import Config, ConfigError, override, preset
from crab_mini.fused_lora import torch_path
from crab_mini.options import STAGES, arguments, check, fields, parser
from crab_mini.stages.clips import check_clips, clips_folder
from crab_mini.world.write import write

from . import small_av_uie

QUICK = ["--preset", "nano", "--precision", "fp32", "--kernel", "torch", "--max-steps", "2", "--world.clips", "9",
         "--world.test_clips", "12", "--world.rows_per_task", "1", *(f"--{name}.batch=4" for name in STAGES)]
KINDS = {name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test in a folder of its own, with one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAB_KERNEL", "torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_help_lists_every_option_and_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for name, value in fields(preset("tiny")).items():
        shown = re.search(rf"--{re.escape(name)}=(\S+)", text)
        assert shown and fields(override(Config(), name, shown[1]))[name] == value, name
    for action in parser("")._actions:
        assert action.option_strings[0] in text and (action.help or action.choices), action.dest


def test_every_option_and_every_field_is_read(monkeypatch, tmp_path):
    """By the code that runs, not by what only copies, prints or checks a configuration."""
    read = set()

    def spy(kind, name_of):
        original = kind.__getattribute__

        def reading(self, key):
            file = Path(sys._getframe(1).f_code.co_filename)
            if file.name not in ("dataclasses.py", "config.py", "config_check.py", "options.py", "argparse.py"):
                read.add((name_of, key))
            return original(self, key)
        monkeypatch.setattr(kind, "__getattribute__", reading)

    class Spied(argparse.Namespace):
        pass
    for kind in set(KINDS.values()):
        spy(kind, kind.__name__)
    spy(Config, "Config")
    spy(Spied, "options")
    given = train.arguments
    monkeypatch.setattr(train, "arguments", lambda *words: (Spied(**vars((pair := given(*words))[0])), pair[1]))
    data = small_av_uie.build(tmp_path / "real")
    assert train.main([*QUICK, "--data", str(data)]) == 0
    for section, kind in KINDS.items():
        for field in dataclasses.fields(kind):
            assert (kind.__name__, field.name) in read, f"--{section}.{field.name} is accepted and ignored"
    assert ("Config", "seed") in read
    # max_steps shortens the stages in options.py; the paths of weights are published.py's (tests/test_published.py)
    elsewhere = {"help", "max_steps", "vision_weights", "audio_weights", "llm_weights"}
    names = {action.dest for action in parser("")._actions} - elsewhere
    assert names - {name for kind, name in read if kind == "options"} == {"tokenizer"}
    assert arguments("", ["--max-steps", "7"])[1].text.steps == 7


@pytest.mark.parametrize("words, line", [
    (["--presett", "nano"], "--presett: no such option or field; nearest: --preset"),
    (["--pre", "nano"], "--pre: no such option or field"),
    (["--lora.head", "1"], "--lora.head: no such option or field; nearest: --lora.heads"),
    (["--lora.heads", "one"], "--lora.heads: expected int, found 'one'"),
    (["--lora.heads"], "--lora.heads: expected pairs such as --lora.heads 1"),
    (["nano"], "nano: expected pairs such as --lora.heads 1"),
    (["--preset", "tny"], "--preset tny: no such preset; nearest: tiny"),
    (["--task", "avee"], "--task avee: no such task; nearest: ave"),
    (["--task", ","], "--task ,: no such task"),
    (["--precision", "fp8"], "--precision: invalid choice: 'fp8'"),
    (["--max-steps", "0"], "--max-steps: expected a number above 0, found 0"),
    (["--max-minutes", "nan"], "--max-minutes: expected a number above 0, found nan"),
    (["--max-minutes", "soon"], "--max-minutes: invalid float value: 'soon'"),
    (["--text.batch", "0"], "--text.batch: expected a number above 0, found 0"),
    (["--text.lr", "-1"], "--text.lr: expected a number above 0, found -1"),
    (["--text.lr", "inf"], "--text.lr: expected a number above 0, found inf"),
    (["--seed", "-1"], "--seed: expected a number of at least 0, found -1"),
    (["--seed", "99999999999"], "--seed: expected at most 2147483647"),
    (["--world.seed", "109951"], "--world.seed: expected at most 109950, found 109951"),
    (["--vision.dim", "66", "--vision.heads", "2"], "--vision.dim: expected a multiple of 4"),
    (["--stages", "runs/tinny"], "runs/tinny: --stages: the folder of an earlier run cannot be found"),
    (["--vision.patch", "7"], "--vision.image: expected a multiple of vision.patch 7, found 64"),
    (["--vision.heads", "5"], "--vision.dim: expected a multiple of vision.heads 5, found 64"),
    (["--vision.mask_layers", "1,9"], "--vision.mask_layers: expected at most 2, the number of layers, found 1,9"),
    (["--mask.tokens", "2"], "--mask.tokens: no such option or field"),
    (["--visual_qformer.queries", "8"], "--visual_qformer.queries: expected 4, the slots of the scripts"),
    (["--audio.max_distance", "3"], "--audio.max_distance: expected more than a quarter of the buckets, found 3"),
    (["--llm.kv_heads", "3"], "LLMConfig: dim must be a multiple of 2 * heads and heads of kv_heads"),
])
def test_what_cannot_be_meant_is_one_line(words, line, capsys):
    assert train.main([*words, *["--preset", "nano"] * ("--preset" not in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and line in error and error.count("\n") == 1


def test_the_kernel_is_an_argument_and_the_variable_is_the_user_s(monkeypatch, capsys):
    """What --kernel names reaches every LoRA layer, and no program writes the environment variable."""
    monkeypatch.setenv("CRAB_KERNEL", "cpp")
    asked = set()
    monkeypatch.setattr("crab_mini.fused_lora.dispatch.pick", lambda kernel, *_: asked.add(kernel) or torch_path)
    assert train.main([*QUICK, "--task", "s4"]) == 0 and asked == {"torch"}
    assert os.environ["CRAB_KERNEL"] == "cpp"
    ckpt = ["--ckpt", "runs/nano/crab.pt", "--limit", "1", "--precision", "fp32"]
    asked.clear()
    assert evaluation.main([*ckpt, "--kernel", "torch"]) == 0 and asked == {"torch"}
    asked.clear()
    assert evaluation.main(ckpt) == 0 and asked == {""}          # the variable decides
    assert os.environ["CRAB_KERNEL"] == "cpp"


def test_the_program_exits_with_2(tmp_path):
    done = subprocess.run([sys.executable, Path(train.__file__), "--presett", "nano"], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nearest: --preset" in done.stderr


def test_every_preset_is_consistent_and_fields_can_be_written_with_an_equals_sign():
    for name in ("nano", "tiny", "small", "paper"):
        check(preset(name), scripted=name != "paper")
    assert arguments("", ["--lora.heads=2", "--seed=4"])[1] == dataclasses.replace(
        override(preset("tiny"), "lora.heads", "2"), seed=4)
    with pytest.raises(ConfigError):
        options.parser("").parse_args(["--nothing"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is there")
def test_a_gpu_that_is_not_there_is_one_line(capsys):
    assert train.main(["--preset", "nano", "--device", "cuda"]) == 2
    assert "--device cuda: this torch sees no GPU" in capsys.readouterr().err


def test_the_miniature_lands_in_a_folder_that_can_be_typed_and_is_never_taken_for_another(capsys):
    tiny = Config()
    assert clips_folder(None, tiny, {}) == Path("data/av_uie_mini")
    changed = override(override(tiny, "world.clips", "9"), "vision.image", "32")
    assert clips_folder(None, changed, {}) == Path("data/av_uie_mini_image_32_clips_9")
    for field in dataclasses.fields(tiny.world):            # each number changes the name
        other = override(tiny, f"world.{field.name}", str(getattr(tiny.world, field.name) + 1))
        assert clips_folder(None, other, {}) != clips_folder(None, tiny, {})

    cfg = arguments("", QUICK)[1]
    folder = clips_folder(None, cfg, {})
    numbers = dict(clips=9, test_clips=12, image=64, seed=0, cap=1)
    write(folder, **numbers, workers=1)
    check_clips(folder, cfg, miniature=True)
    for change, line in ((dict(clips=10), "expected world.clips 9, found 10"),
                         (dict(test_clips=13), "expected world.test_clips 12, found 13"),
                         (dict(seed=1), "expected world.seed 0, found 1"),
                         (dict(cap=2), "expected world.rows_per_task 1, found 2"),
                         (dict(image=32), "expected frames of 64 pixels, found 32")):
        shutil.rmtree(folder)
        write(folder, **numbers | change, workers=1)
        assert train.main(QUICK) == 2
        assert f"train.py: {folder}: {line}" in capsys.readouterr().err.splitlines()[-1]
    index = json.loads((folder / "clips.json").read_text()) | dict(image=64, categories=["owl"], rows_per_task=1)
    (folder / "clips.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=f"{folder}: expected the world's own categories, found owl; --data"):
        check_clips(folder, cfg, miniature=True)
    check_clips(folder, cfg, miniature=False)               # with --data it is taken as it is


@pytest.mark.parametrize("flag", ["--out", "--stages", "--cache-features"])
def test_a_folder_that_cannot_be_written_is_one_line(flag, capsys):
    Path("file").write_text("in the way")
    assert train.main([*QUICK, flag, "file/folder"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train.py: file/folder") and "cannot be" in error
    assert not list(Path(".").rglob("*.jsonl"))             # found before anything was trained


def test_a_full_disk_is_one_line_and_leaves_what_was_there(monkeypatch, capsys):
    assert train.main([*QUICK, "--task", "s4"]) == 0
    before = Path("runs/nano/results.json").read_bytes()
    capsys.readouterr()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    assert train.main([*QUICK, "--task", "s4", "--out", "other", "--stages", "runs/nano"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written: No space left on device" in error
    assert train.main([*QUICK, "--task", "s4"]) == 2
    assert Path("runs/nano/results.json").read_bytes() == before and not list(Path(".").rglob("*.part"))
