"""Trains Crab from random weights and answers the nine tasks.

    python train.py --task all                                   # tiny, about half an hour on two cores
    python train.py --task ave,s4 --preset nano --max-minutes 2
    python train.py --task all --lora.heads 1 --stages runs/tiny # an ablation that shares the earlier stages
    torchrun --nproc_per_node 2 train.py --task all

The first time it makes its data set, data/av_uie_mini. Everything it learns lies in --out: a checkpoint and a curve a
stage, and crab.pt, the whole model, for eval.py. A stage whose checkpoint is there is skipped; --resume goes on with
one that was stopped.
"""

import argparse
import dataclasses
import functools
import hashlib
import os
import sys
import time
from pathlib import Path

import torch

from crab_mini import bundle
from crab_mini.answering import answer, autocast
from crab_mini.checkpoint import CheckpointError, write_whole
from crab_mini.config import Config, ConfigError, override, preset
from crab_mini.features import Features
from crab_mini.media import DataError
from crab_mini.parallel import Processes, connect, disconnect
from crab_mini.scoring import as_json, score, table
from crab_mini.stages.encoders import HearStage, Pictures, SeeStage, Sounds
from crab_mini.stages.instruct import Rows
from crab_mini.stages.interfaces import ClipFeatures, ClipRows, SegmentStage, SpeakStage, WholeStage, Words
from crab_mini.stages.rows import MASK_WEIGHTS, Stream
from crab_mini.stages.text import Script, ScriptRows, TextStage, world_text
from crab_mini.tasks import TASKS, parse_tasks
from crab_mini.tokenizer import Tokenizer
from crab_mini.training import Interrupted, NonFiniteLoss, Run, fit, seed_all
from crab_mini.world.clips import Clips
from crab_mini.world.scene import CATEGORIES
from crab_mini.world.write import write

STAGES = ("text", "see", "hear", "speak", "segment", "align", "instruct")
MINIATURE = Path("data/av_uie_mini")
INTERFACE_RATE = 0.3        # of LoRA's learning rate, for the interfaces: alignment has brought them close already


def arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, Config]:
    """The command line -> (options, configuration); ConfigError in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="Any field of the configuration is an option too: --lora.heads 1, --seed 3")
    parser.add_argument("--task", default="all", help="all, or names with commas: " + ",".join(TASKS))
    parser.add_argument("--preset", default="tiny", help="nano, tiny or small")
    parser.add_argument("--data", type=Path, help="a folder in the AV-UIE layout for the instruct stage")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/PRESET)")
    parser.add_argument("--stages", type=Path, help="folder with the earlier stages of another run to share")
    parser.add_argument("--reasoning", choices=("on", "off"), default="on", help="off: learn the bare answers")
    parser.add_argument("--max-minutes", type=float, help="wall-clock budget of all stages together")
    parser.add_argument("--max-steps", type=int, help="steps of each stage at most")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="auto: bf16 on a GPU and on CPUs that multiply it in hardware")
    parser.add_argument("--kernel", choices=("auto", "torch", "cpp", "cuda"), default="auto", help="of the LoRA")
    parser.add_argument("--resume", action="store_true", help="go on with the stage that was stopped")
    options, rest = parser.parse_known_args(argv)
    cfg = preset(options.preset)
    if len(rest) % 2 or any(not name.startswith("--") for name in rest[::2]):
        raise ConfigError(f"{' '.join(rest)}: expected pairs such as --lora.heads 1")
    for name, value in zip(rest[::2], rest[1::2]):
        cfg = override(cfg, name[2:], value)
    return options, cfg


class Lazily:
    """Batches that are made when the first one is asked for: a stage that is skipped never needs its data."""

    def __init__(self, make):
        self.make, self.made = make, None

    def _get(self):
        self.made = self.made or self.make()
        return self.made

    def at(self, step: int):
        """The batch of a step."""
        return self._get().at(step)

    def ids(self, step: int) -> list[str]:
        """Its samples."""
        return self._get().ids(step)


def settle(options: argparse.Namespace) -> tuple[torch.device, str, list[str]]:
    """-> device, precision and the tasks, all checked."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no GPU (expected auto or cpu)")
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    quick = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    precision = options.precision if options.precision != "auto" else "bf16" if quick else "fp32"
    os.environ["CRAB_KERNEL"] = options.kernel
    return device, precision, parse_tasks(options.task)


def miniature(cfg: Config, processes: Processes) -> Path:
    """The folder of the miniature data set, made the first time (by the first process; the others wait)."""
    folder = MINIATURE.with_name(f"{MINIATURE.name}_{cfg.vision.image}_{cfg.world.clips}_{cfg.world.seed}")
    if processes.first and not (folder / "clips.json").exists():
        print(f"making the data set {folder}: {cfg.world.clips} training and {cfg.world.test_clips} test clips")
        write(folder, cfg.world.clips, cfg.world.test_clips, cfg.vision.image, cfg.world.seed, cfg.world.rows_per_task)
    processes.gather(None)
    return folder


def vocabulary(cfg: Config, out: Path, processes: Processes) -> Tokenizer:
    """The tokenizer, trained on the world's text the first time."""
    path = out / "tokenizer.model"
    if processes.first and not path.exists():
        write_whole(path, Tokenizer.train(world_text(CATEGORIES, cfg.seed), cfg.llm.vocab).model)
    processes.gather(None)
    return Tokenizer.load(path)


def plan(crab, cfg: Config, options, run: Run, data: Path, tasks: list[str]) -> None:
    """Says what is about to happen."""
    threads = f"{torch.get_num_threads()} threads, {run.processes.world} process(es)"
    minutes = options.max_minutes or sum(getattr(cfg, name).minutes for name in STAGES)
    print(f"crab_mini {options.preset}: {', '.join(tasks)}; {run.device} in {run.precision}, {threads}, seed {cfg.seed}\n"
          f"data {data}, results in {options.out}\n"
          f"stages: {', '.join(f'{n} {getattr(cfg, n).steps} steps' for n in STAGES)}; "
          f"about {minutes:.0f} minutes on two fast cores", flush=True)
    for name, part in crab.named_children():
        print(f"  {name:16s} {sum(p.numel() for p in part.parameters()) / 1e6:7.2f} M parameters")


def parameters(name: str, module, processes: Processes) -> None:
    """Says what a stage trains."""
    if processes.first:
        total = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"{name}: trains {trained / 1e6:.2f} M of {total / 1e6:.2f} M parameters, {(total - trained) / 1e6:.2f} M frozen")


def train(crab, tokenizer: Tokenizer, cfg: Config, options, run: Run, data: Path, mini: Path,
          tasks: list[str]) -> Features:
    """All stages in order; each is skipped when its checkpoint is there."""
    reasoning, share, seed = options.reasoning == "on", (run.processes.rank, run.processes.world), cfg.seed
    words = Script(crab, len(CATEGORIES))
    features = Features(crab, run.device, functools.partial(autocast, run.device, run.precision))
    clips = functools.cache(lambda: Clips(mini, "train"))
    clip_features = functools.cache(lambda: ClipFeatures(clips(), features))
    early = dataclasses.replace(run, out=options.stages or options.out)
    depends = {"model": cfg.model_dict(), "words": hashlib.sha256(tokenizer.model).hexdigest(), "reasoning": reasoning}
    whole = sum(getattr(cfg, name).minutes for name in STAGES)

    def stage(name: str, module, batches, where: Run = early, rate=None) -> None:
        stage_cfg = getattr(cfg, name)
        if options.max_steps:
            stage_cfg = dataclasses.replace(stage_cfg, steps=min(stage_cfg.steps, options.max_steps))
        parameters(name, module, run.processes)
        minutes = options.max_minutes and options.max_minutes * stage_cfg.minutes / whole
        depends[name] = fit(name, module, Lazily(batches), stage_cfg, dict(depends), where, minutes, rate)

    stage("text", TextStage(crab, words),
          lambda: Stream(ScriptRows(cfg, tokenizer, CATEGORIES, reasoning), tokenizer, cfg.text.batch, seed, *share))
    depends["clips"] = dataclasses.asdict(cfg.world)
    stage("see", SeeStage(crab, len(CATEGORIES)), lambda: Pictures(clips(), cfg.see.batch, seed, *share))
    stage("hear", HearStage(crab, len(CATEGORIES)),
          lambda: Sounds(clips(), cfg.hear.batch, seed, cfg.hear.steps, cfg.audio.patch, *share))
    stage("speak", SpeakStage(crab, words), lambda: Words(clip_features(), cfg.speak.batch, seed, *share))
    stage("segment", SegmentStage(crab, words), lambda: Stream(
        ClipRows(cfg, tokenizer, clip_features(), reasoning, MASK_WEIGHTS, scripted=True), tokenizer,
        cfg.segment.batch, seed + 1, *share))
    stage("align", WholeStage(crab), lambda: Stream(
        ClipRows(cfg, tokenizer, clip_features(), reasoning), tokenizer, cfg.align.batch, seed + 2, *share))
    depends |= {"lora": dataclasses.asdict(cfg.lora), "tasks": tasks, "data": str(data)}
    crab.with_lora().to(run.device)
    stage("instruct", WholeStage(crab), lambda: Stream(
        Rows(data, "train", tasks, features, tokenizer, reasoning), tokenizer, cfg.instruct.batch, seed + 3, *share),
        where=run, rate=lambda name: 1.0 if "lora_" in name else INTERFACE_RATE)
    return features


def evaluate(crab, tokenizer: Tokenizer, features: Features, data: Path, tasks: list[str], run: Run) -> dict:
    """All scores on the test split."""
    rows = Rows(data, "test", tasks, features, tokenizer)
    return {task: score(task, answer(crab, tokenizer, rows, task, run.device, run.precision), CATEGORIES)
            for task in tasks if rows.by_task[task]}


def main(argv: list[str] | None = None) -> int:
    """Trains and evaluates; 2 with one line of reason where that cannot be."""
    began = time.monotonic()
    try:
        options, cfg = arguments(argv)
        device, precision, tasks = settle(options)
        processes, device = connect(device)
        options.out = options.out or Path("runs") / options.preset
        run = Run(options.out, device, cfg.seed, precision, options.resume, processes)
        mini = miniature(cfg, processes)
        data = options.data or mini
        tokenizer = vocabulary(cfg, options.stages or options.out, processes)
        cfg = override(cfg, "llm.vocab", str(tokenizer.size))
        seed_all(cfg.seed, "model")
        crab = bundle.build(cfg, tokenizer).to(device)
        if processes.first:
            plan(crab, cfg, options, run, data, tasks)
        features = train(crab, tokenizer, cfg, options, run, data, mini, tasks)
        if processes.first:
            minutes = (time.monotonic() - began) / 60
            bundle.save(options.out / "crab.pt", crab, tokenizer, minutes=minutes, tasks=tasks, data=str(data))
            results = evaluate(crab, tokenizer, features, data, tasks, run)
            minutes = (time.monotonic() - began) / 60
            write_whole(options.out / "results.json", as_json(results, minutes=minutes, seed=cfg.seed).encode())
            print(table(results) + f"\n\n{minutes:.1f} minutes in all; model {options.out / 'crab.pt'}")
        disconnect()
    except (ConfigError, DataError, CheckpointError, NonFiniteLoss, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
