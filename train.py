"""Trains Crab from random weights and answers the nine tasks.

    python train.py --task all                                   # tiny, about half an hour on two cores
    python train.py --task ave,s4 --preset nano --max-minutes 2
    python train.py --task all --lora.heads 1 --stages runs/tiny # an ablation that shares the earlier stages
    torchrun --nproc_per_node 2 train.py --task all
    python train.py --task all --data AVUIE_2 --stages runs/tiny --skip-bad --cache-features cache
    python train.py --task all --vision-weights clip/pytorch_model.bin --audio-weights BEATs_iter3_plus_AS2M.pt

The first time it makes its data set under data/. Everything it learns lies in --out: a checkpoint and a curve a
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
import zlib
from collections import Counter
from pathlib import Path

import torch

from crab_mini import bundle, published
from crab_mini.answering import answer
from crab_mini.av_uie import tasks_in
from crab_mini.checkpoint import CheckpointError, write_whole
from crab_mini.classes import classes_of, event_names
from crab_mini.config import Config, ConfigError, override
from crab_mini.features import Features
from crab_mini.media import DataError
from crab_mini.options import STAGES, arguments, check
from crab_mini.parallel import Processes, connect, disconnect
from crab_mini.scoring import score
from crab_mini.stages.encoders import HearStage, Pictures, SeeStage, Sounds
from crab_mini.stages.instruct import Rows, usable
from crab_mini.stages.interfaces import ClipFeatures, ClipRows, SegmentStage, SpeakStage, WholeStage, Words
from crab_mini.stages.rows import MASK_KINDS, Stream
from crab_mini.stages.text import Script, ScriptRows, TextStage, narrations, task_text
from crab_mini.tables import as_json, table
from crab_mini.tasks import parse_tasks
from crab_mini.tokenizer import Tokenizer
from crab_mini.training import NonFiniteLoss, Run, fit, seed_all
from crab_mini.world.clips import Clips, index_of
from crab_mini.world.scene import CATEGORIES, WORLD
from crab_mini.world.write import write

MINIATURE = Path("data/av_uie_mini")
INTERFACE_RATE = 0.3        # of the learning rate, for the interfaces: alignment has brought them close already
ADDED_RATE = 5.0            # and for the rows of added tokens: they have all to learn
LISTED = 20                 # bad samples that are named one by one


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


def rendered(options: argparse.Namespace) -> Path | None:
    """--data where it holds rendered clips (of a bank, say): then the earlier stages learn from them, too."""
    there = options.data is not None and (options.data / "clips.json").is_file()
    return options.data if there else None


def clips_folder(options: argparse.Namespace, cfg: Config) -> Path:
    """The rendered clips that the earlier stages learn from: those of --data, else the miniature."""
    folder = rendered(options)
    if folder is None:
        numbers = (cfg.vision.image, cfg.world.clips, cfg.world.test_clips, cfg.world.rows_per_task, cfg.world.seed)
        return MINIATURE.with_name("_".join([MINIATURE.name, *map(str, numbers)]))
    for name in options.overrides:
        if name.startswith("world."):
            raise ConfigError(f"--{name}: {folder} is rendered already; it is for the miniature that train.py makes")
    return folder


def same_size(folder: Path, cfg: Config) -> None:
    """ConfigError unless the rendered frames are as large as the model's."""
    image = index_of(folder)["image"]
    if image != cfg.vision.image:
        raise ConfigError(f"{folder}: expected frames of {cfg.vision.image} pixels, found {image}: --vision.image is "
                          "the model's side, --image that of python -m crab_mini.world")


def render(folder: Path, cfg: Config, processes: Processes) -> None:
    """Makes the miniature data set the first time (the first process does; the others wait)."""
    world = cfg.world
    if processes.first and not (folder / "clips.json").exists():
        print(f"making the data set {folder}: {world.clips} training and {world.test_clips} test clips")
        write(folder, world.clips, world.test_clips, cfg.vision.image, world.seed, world.rows_per_task)
    processes.gather(None)


def vocabulary(cfg: Config, out: Path, categories: list[str], processes: Processes) -> Tokenizer:
    """The tokenizer, trained on the world's text the first time: words that only tasks use stand last."""
    names = zlib.crc32(",".join(categories).encode())
    path = out / f"tokenizer_{cfg.llm.vocab}_{cfg.seed}_{names:08x}.model"
    if processes.first and not path.exists():
        rows = list(narrations(categories, cfg.seed))
        made = Tokenizer.train((row.prompt for row in rows), cfg.llm.vocab, (row.answer for row in rows),
                               task_text(categories, cfg.seed))
        write_whole(path, made.model)
    processes.gather(None)
    return Tokenizer.load(path)


def assemble(options: argparse.Namespace, cfg: Config, categories: list[str], run: Run):
    """-> the model in its initial state, its tokenizer, its configuration and the hashes of published weights."""
    cfg, parts = published.load(cfg, options)
    check(cfg, scripted="llm" not in parts)
    tokenizer = published.tokenizer_of(options, parts["llm"]) if "llm" in parts else \
        vocabulary(cfg, options.stages or options.out, categories, run.processes)
    cfg = override(cfg, "llm.vocab", str(tokenizer.size))
    published.feasible(cfg, options, bundle.special_ids(tokenizer), run.device)
    seed_all(cfg.seed, "model")
    return bundle.build(cfg, tokenizer, parts).to(run.device), tokenizer, cfg, published.keys(parts)


def bring(options: argparse.Namespace, mini: Path, tasks: list[str], run: Run) -> tuple[Path, list[str]]:
    """The data folder of the instruct stage and those of the tasks that it has; the others are named."""
    if options.data is None:
        return mini, tasks
    there, lacking = tasks_in(options.data, "train", tasks)
    if lacking and run.processes.first:
        print(f"{options.data} has no {', '.join(lacking)}: left out")
    return options.data, there


def left_out(problems: list[DataError], split: str, run: Run) -> None:
    """Says what --skip-bad leaves out of a split."""
    if problems and run.processes.first:
        lines = [f"--skip-bad leaves {len(problems)} sample(s) out of {split}:", *map(str, problems[:LISTED])]
        print("\n  ".join(lines + [f"and {len(problems) - LISTED} more"] * (len(problems) > LISTED)), flush=True)


def plan(crab, cfg: Config, options, run: Run, data: Path, mini: Path, tasks: list[str]) -> None:
    """Says what is about to happen."""
    threads = f"{torch.get_num_threads()} threads, {run.processes.world} process(es)"
    skipped = published.skipped(options)
    stages = [name for name in STAGES if name not in skipped]
    minutes = options.max_minutes or sum(getattr(cfg, name).minutes for name in stages)
    clips = Counter(name.split("_")[0] for name in index_of(mini)["clips"])
    print(f"crab_mini {options.preset}: {', '.join(tasks)}\n"
          f"{run.device} in {run.precision}, {threads}, seed {cfg.seed}\ndata {data}, results in {options.out}\n"
          f"stages: {', '.join(f'{n} {getattr(cfg, n).steps} steps' for n in stages)}; "
          f"about {minutes:.0f} minutes of training on two fast cores, and some for data and scores\n"
          f"clips: {', '.join(f'{count} {split}' for split, count in clips.items())} in {mini}", flush=True)
    for name, path in skipped.items():
        print(f"{name}: skipped, published weights are taken from {path}")
    for name, part in crab.named_children():
        print(f"  {name:16s} {sum(p.numel() for p in part.parameters()) / 1e6:7.2f} M parameters")
    print(f"  {'in all':16s} {sum(p.numel() for p in crab.parameters()) / 1e6:7.2f} M parameters")


def parameters(name: str, module, processes: Processes) -> None:
    """Says what a stage trains."""
    if processes.first:
        total = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"{name}: trains {trained / 1e6:.2f} M of {total / 1e6:.2f} M parameters, "
              f"{(total - trained) / 1e6:.2f} M frozen")


def instruct_rate(name: str, ours: bool) -> float:
    """Factor of a parameter's learning rate in the instruct stage. ours: the LLM is no published one."""
    if name.endswith(".added"):
        return ADDED_RATE if ours else 1.0
    return 1.0 if "lora_" in name else INTERFACE_RATE


def prepare(data: Path, split: str, tasks: list[str], features: Features, tokenizer: Tokenizer, options,
            run: Run) -> Rows:
    """The rows of a split; with --skip-bad the usable ones."""
    problems = [] if options.skip_bad else None
    rows = Rows(data, split, tasks, features, tokenizer, options.reasoning == "on", problems=problems)
    left_out(problems or [], split, run)
    return rows


def train(crab, tokenizer: Tokenizer, cfg: Config, options, run: Run, data: Path, mini: Path,
          categories: list[str], tasks: list[str], keys: dict[str, str], before) -> Features:
    """All stages in order; each is skipped when its checkpoint is there, or published weights make it needless.

    No stage before instruct poses a task: `reasoning` is not among what they depend on. before: is called with the
    features when those are over.
    """
    share, seed = (run.processes.rank, run.processes.world), cfg.seed
    words = Script(crab, len(categories))
    features = Features(crab, run.device, run.precision, options.cache_features)
    clips = functools.cache(lambda: Clips(mini, "train"))
    clip_features = functools.cache(lambda: ClipFeatures(clips(), features))
    early = dataclasses.replace(run, out=options.stages or options.out)
    depends = {"world": WORLD, "words": hashlib.sha256(tokenizer.model).hexdigest(), "model": cfg.model_dict()}
    depends |= {"weights": keys} if keys else {}
    skipped = published.skipped(options)
    published_llm = "text" in skipped
    whole = sum(getattr(cfg, name).minutes for name in STAGES if name not in skipped)

    def stage(name: str, make, batches, where: Run = early, rate=None) -> None:
        if name in skipped:
            return
        module, stage_cfg = make(), getattr(cfg, name)
        parameters(name, module, run.processes)
        minutes = options.max_minutes and options.max_minutes * stage_cfg.minutes / whole
        depends[name] = fit(name, module, Lazily(batches), stage_cfg, dict(depends), where, minutes, rate)

    stage("text", lambda: TextStage(crab, words),
          lambda: Stream(ScriptRows(cfg, tokenizer, categories), tokenizer, cfg.text.batch, seed, *share))
    depends["clips"] = dataclasses.asdict(cfg.world) | {"folder": str(mini)}
    stage("see", lambda: SeeStage(crab, len(categories)), lambda: Pictures(clips(), cfg.see.batch, seed, *share))
    stage("hear", lambda: HearStage(crab, len(categories)),
          lambda: Sounds(clips(), cfg.hear.batch, seed, cfg.hear.steps, cfg.audio.patch, *share))
    stage("speak", lambda: SpeakStage(crab, words), lambda: Words(clip_features(), cfg.speak.batch, seed, *share))
    stage("segment", lambda: SegmentStage(crab, words), lambda: Stream(
        ClipRows(cfg, tokenizer, clip_features(), MASK_KINDS, scripted=True), tokenizer, cfg.segment.batch, seed + 1,
        *share))
    stage("align", lambda: WholeStage(crab, added=published_llm), lambda: Stream(
        ClipRows(cfg, tokenizer, clip_features()), tokenizer, cfg.align.batch, seed + 2, *share))
    depends |= {"lora": dataclasses.asdict(cfg.lora), "tasks": tasks, "data": str(data),
                "reasoning": options.reasoning == "on"}
    crab.with_lora().to(run.device)
    if not published_llm:
        crab.llm.renew()
    before(features)

    stage("instruct", lambda: WholeStage(crab), lambda: Stream(
        prepare(data, "train", tasks, features, tokenizer, options, run), tokenizer, cfg.instruct.batch, seed + 3,
        *share), where=run, rate=lambda name: instruct_rate(name, not published_llm))
    return features


def glance(data: Path, tasks: list[str], tokenizer: Tokenizer, options, run: Run) -> None:
    """Opens all of --data before minutes or hours go into training. (The training split's turn comes at once where the
    earlier stages are done.)"""
    names = [name for name in STAGES[:-1] if name not in published.skipped(options)]
    ready = all(((options.stages or options.out) / f"{name}.pt").exists() for name in names)
    if options.data:
        usable(data, ("test",) if ready else ("train", "test"), tasks, tokenizer, options.reasoning == "on",
               [] if options.skip_bad else None)


def evaluate(crab, tokenizer: Tokenizer, features: Features, data: Path, tasks: list[str], options, run: Run) -> dict:
    """All scores on the test split; none where a data folder has no such split."""
    if not any((data / task / "test.json").is_file() for task in tasks):
        print(f"{data} has no test.json of {', '.join(tasks)}: nothing is evaluated")
        return {}
    rows = prepare(data, "test", tasks, features, tokenizer, options, run)
    events = event_names(data)
    return {task: score(task, answer(crab, tokenizer, rows, task, run.device, run.precision), events)
            for task in tasks if rows.by_task[task]}


def main(argv: list[str] | None = None) -> int:
    """Trains and evaluates; 2 with one line of reason where that cannot be."""
    began = time.monotonic()
    try:
        options, cfg = arguments(__doc__, argv)
        device, precision, tasks = settle(options)
        if options.stages and not options.stages.is_dir():
            raise ConfigError(f"{options.stages}: --stages: the folder of an earlier run cannot be found")
        processes, device = connect(device)
        options.out = options.out or Path("runs") / options.preset
        run = Run(options.out, device, cfg.seed, precision, options.resume, processes)
        categories = event_names(options.data) if rendered(options) else list(CATEGORIES)
        crab, tokenizer, cfg, keys = assemble(options, cfg, categories, run)
        mini = clips_folder(options, cfg)               # published weights may have changed the size of the frames
        render(mini, cfg, processes)
        same_size(mini, cfg)
        data, tasks = bring(options, mini, tasks, run)
        if processes.first:
            plan(crab, cfg, options, run, data, mini, tasks)
        glance(data, tasks, tokenizer, options, run)

        def zero(features: Features) -> None:
            """The zero row: all scores before instruction tuning."""
            if options.before and processes.first and not (options.out / "before.json").exists():
                results = evaluate(crab, tokenizer, features, data, tasks, options, run)
                write_whole(options.out / "before.json", as_json(results, seed=cfg.seed).encode())
                print(f"before the instruct stage:\n{table(results)}", flush=True)
            processes.gather(None)

        features = train(crab, tokenizer, cfg, options, run, data, mini, categories, tasks, keys, zero)
        if processes.first:
            minutes = (time.monotonic() - began) / 60
            bundle.save(options.out / "crab.pt", crab, tokenizer, minutes=minutes, tasks=tasks, data=str(data),
                        classes=list(classes_of(data)))
            results = evaluate(crab, tokenizer, features, data, tasks, options, run)
            minutes = (time.monotonic() - began) / 60
            write_whole(options.out / "results.json", as_json(results, minutes=minutes, seed=cfg.seed).encode())
            print(table(results) + f"\n\n{minutes:.1f} minutes in all; model {options.out / 'crab.pt'}")
        disconnect()
    except (ConfigError, DataError, CheckpointError, NonFiniteLoss, ValueError, OSError) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"train.py: out of memory, fewer rows in --instruct.batch and the like take less: "
              f"{str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:       # Interrupted among them, which says how to go on
        print(str(stop) or "train.py: stopped; the same command goes on after the last finished stage", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
