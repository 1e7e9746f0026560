"""Trains Crab from random weights and answers the nine tasks.

    python train.py --task all                               # tiny, half an hour on two cores
    python train.py --task ave,s4 --preset nano --max-minutes 2
    python train.py --task all --lora.heads 1 --stages runs/tiny    # an ablation of the last stage
    torchrun --nproc_per_node 2 train.py --task all
    python train.py --task all --data AVUIE_2 --stages runs/tiny --skip-bad --cache-features cache
    python train.py --task all --vision-weights clip/pytorch_model.bin --audio-weights BEATs.pt

The first time it makes its data set under data/. Its results are in --out: for each stage a
checkpoint and a curve, and crab.pt, the whole model, for eval.py. A stage whose checkpoint is there
is skipped; --resume goes on with one that was stopped. crab_mini/stages/recipe.py says what each
stage trains, crab_mini/training/loop.py how.
"""

import argparse
import dataclasses
import functools
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import torch

from crab_mini import bundle
from crab_mini.av_uie.class_lists import classes_of
from crab_mini.av_uie.rows import event_names, tasks_in
from crab_mini.config import Config, ConfigError, override
from crab_mini.errors import CheckpointError, DataError, NonFiniteLoss
from crab_mini.evaluation.generate import answer
from crab_mini.evaluation.score import score
from crab_mini.evaluation.tables import as_json, table
from crab_mini.features.encoders import Features
from crab_mini.features.rows import Split, left_out, usable
from crab_mini.files import write_whole
from crab_mini.options import STAGES, arguments, check, device_and_precision
from crab_mini.pretrained import options as published
from crab_mini.stages.clips import (
    TrainingClips,
    check_clips,
    clips_folder,
    is_rendered,
    render_clips,
)
from crab_mini.stages.recipe import Stage, facts, recipe
from crab_mini.stages.rows import AnnotationSampler
from crab_mini.stages.text import ScriptEmbeddings, world_text
from crab_mini.tasks.base import load_plugin, parse_tasks
from crab_mini.tokenizer import Tokenizer
from crab_mini.training.distributed import connect, disconnect
from crab_mini.training.loop import Run, fit
from crab_mini.training.rng import seed_all
from crab_mini.world.clips import index_of
from crab_mini.world.scene import CATEGORIES


def train_and_evaluate(argv: list[str] | None) -> None:
    """The whole program, act by act."""
    began = time.monotonic()

    # Settle the options.
    options, cfg = arguments(__doc__, argv)
    load_plugin(options.plugin)
    tasks = parse_tasks(options.task)
    run = start(options, cfg)
    first = run.processes.first

    # Build the model, from random or published weights; the latter bring their own sizes.
    categories = list(CATEGORIES)
    if options.data and is_rendered(options.data):
        categories = event_names(options.data)
    crab, tokenizer, weights = build_model(options, cfg, categories, run)
    cfg = crab.cfg

    # Make the data: clips for the earlier stages, a folder of annotations for the last one.
    clips = clips_folder(options.data, cfg, options.overrides)
    if first:
        render_clips(clips, cfg)
    run.processes.gather(None)          # the others wait for the clips
    check_clips(clips, cfg, miniature=clips != options.data)
    data, tasks = data_folder(options, clips, tasks, run)
    if first:
        print_plan(crab, options, run, data, clips, tasks)
    check_annotations(options, data, tasks)

    # Train the stages.
    script = ScriptEmbeddings(crab, categories)
    features = Features(crab, run.device, run.precision, options.cache_features)
    annotations = AnnotationSampler(functools.partial(
        open_split, data, "train", tasks, features, tokenizer, options, run))
    stages = recipe(crab, script, tokenizer, TrainingClips(clips, features), annotations,
                    run.processes.rank, run.processes.world_size)
    known = facts(crab, tokenizer, clips, weights, tasks, data)
    train_stages(stages, crab, known, options, run)

    # Keep the model, and score it on the test split.
    if first:
        minutes = (time.monotonic() - began) / 60
        bundle.save(options.out / "crab.pt", crab, tokenizer, minutes=minutes, tasks=tasks,
                    data=str(data), classes=list(classes_of(data)))
        results = evaluate(crab, tokenizer, features, data, tasks, options, run)
        minutes = (time.monotonic() - began) / 60
        scores = as_json(results, minutes=minutes, seed=cfg.seed)
        write_whole(options.out / "results.json", scores.encode())
        print(table(results))
        print(f"\n{minutes:.1f} minutes in all; model {options.out / 'crab.pt'}")
    disconnect()


def train_stages(stages: list[Stage], crab, known: dict, options, run: Run) -> None:
    """The loop over the stages. known: the facts that stages can depend on, by name."""
    cfg, fingerprints = crab.cfg, {}
    skipped = published.skipped(options)
    all_minutes = sum(getattr(cfg, stage.name).minutes for stage in stages
                      if stage.name not in skipped)
    # The stages before LoRA can be shared between runs; what LoRA learns belongs to this one.
    where = dataclasses.replace(run, out=options.stages or options.out)

    for stage in stages:
        # Skip what published weights replace.
        if stage.name in skipped:
            continue
        if stage.lora:
            crab.with_lora(options.kernel).to(run.device)
            where = run

        # Train the stage, or take it from its checkpoint if nothing that it depends on has changed.
        stage_cfg, module = getattr(cfg, stage.name), stage.module()
        print_parameters(stage.name, module, run)
        depends = {name: fingerprints[name] if name in STAGES else known[name]
                   for name in stage.depends if name not in skipped}
        minutes = None
        if options.max_minutes:
            minutes = options.max_minutes * stage_cfg.minutes / all_minutes
        fingerprints[stage.name] = fit(stage.name, module, stage.batches(), stage_cfg, depends,
                                       where, minutes, stage.lr_scale)


def start(options: argparse.Namespace, cfg: Config) -> Run:
    """Device, precision, folders and processes of the run."""
    device, precision = device_and_precision(options.device, options.precision)
    if options.stages and not options.stages.is_dir():
        raise ConfigError(f"{options.stages}: --stages: the folder of an earlier run cannot be "
                          "found")
    options.out = options.out or Path("runs") / options.preset
    processes, device = connect(device)
    return Run(options.out, device, cfg.seed, precision, options.resume, processes)


def build_model(options: argparse.Namespace, cfg: Config, categories: list[str], run: Run):
    """-> the model in its initial state, its tokenizer, and the hashes of published weights.

    crab.cfg is the configuration as the published weights and the tokenizer have it.
    """
    cfg, parts = published.load(cfg, options)
    check(cfg, scripted="llm" not in parts)
    if "llm" in parts:
        tokenizer = published.tokenizer_of(options, parts["llm"])
    else:
        tokenizer = world_tokenizer(cfg, options.stages or options.out, categories, run)
    cfg = override(cfg, "llm.vocab_size", str(tokenizer.size))
    published.feasible(cfg, options, bundle.special_ids(tokenizer), run.device)
    seed_all(cfg.seed, "model")
    crab = bundle.build(cfg, tokenizer, parts).to(run.device)
    return crab, tokenizer, published.keys(parts)


def world_tokenizer(cfg: Config, out: Path, categories: list[str], run: Run) -> Tokenizer:
    """The tokenizer, trained on the world's text the first time."""
    size, names = cfg.llm.vocab_size, zlib.crc32(",".join(categories).encode())
    path = out / f"tokenizer_{size}_{cfg.seed}_{names:08x}.model"
    if run.processes.first and not path.exists():
        write_whole(path, Tokenizer.train(world_text(categories, cfg.seed), size).model)
    run.processes.gather(None)
    return Tokenizer.load(path)


def data_folder(options, clips: Path, tasks: list[str], run: Run) -> tuple[Path, list[str]]:
    """The data folder of the last stage, and those of the tasks that it has; others are named."""
    if options.data is None:
        return clips, tasks
    there, lacking = tasks_in(options.data, "train", tasks)
    if lacking:
        run.say(f"{options.data} has no {', '.join(lacking)}: left out")
    return options.data, there


def check_annotations(options, data: Path, tasks: list[str]) -> None:
    """Opens all of --data before minutes or hours go into training.

    Where all earlier stages are done the training split is not opened here: it is opened at once.
    """
    if options.data is None:
        return
    skipped, folder = published.skipped(options), options.stages or options.out
    earlier = [name for name in STAGES[:-1] if name not in skipped]
    ready = all((folder / f"{name}.pt").exists() for name in earlier)
    splits = ("test",) if ready else ("train", "test")
    usable(data, splits, tasks, [] if options.skip_bad else None)


def open_split(data: Path, split: str, tasks: list[str], features: Features, tokenizer: Tokenizer,
              options, run: Run) -> Split:
    """The samples of a split; with --skip-bad the usable ones, and what is left out is listed."""
    problems = [] if options.skip_bad else None
    samples = Split(data, split, tasks, features, tokenizer, problems=problems)
    if problems:
        head = f"--skip-bad leaves {len(problems)} sample(s) out of {split}:"
        run.say(left_out(head, problems))
    return samples


def evaluate(crab, tokenizer: Tokenizer, features: Features, data: Path, tasks: list[str], options,
             run: Run) -> dict:
    """All scores on the test split; none where a data folder has no such split."""
    if not any((data / task / "test.json").is_file() for task in tasks):
        print(f"{data} has no test.json of {', '.join(tasks)}: nothing is evaluated")
        return {}
    samples = open_split(data, "test", tasks, features, tokenizer, options, run)
    events, results = event_names(data), {}
    for task in tasks:
        if samples.by_task[task]:
            answers = answer(crab, tokenizer, samples, task, run.device, run.precision)
            results[task] = score(task, answers, events)
    return results


def print_plan(crab, options, run: Run, data: Path, clips: Path, tasks: list[str]) -> None:
    """What is about to happen."""
    cfg, skipped = crab.cfg, published.skipped(options)
    stages = {name: getattr(cfg, name) for name in STAGES if name not in skipped}
    minutes = options.max_minutes or sum(stage.minutes for stage in stages.values())
    steps = ", ".join(f"{name} {stage.steps} steps" for name, stage in stages.items())
    splits = Counter(name.split("_")[0] for name in index_of(clips)["clips"])
    counts = ", ".join(f"{count} {split}" for split, count in splits.items())
    print(f"crab_mini {options.preset}: {', '.join(tasks)}\n"
          f"{run.device} in {run.precision}, {torch.get_num_threads()} threads, "
          f"{run.processes.world_size} process(es), seed {cfg.seed}\n"
          f"data {data}, results in {options.out}\n"
          f"stages: {steps}; about {minutes:.0f} minutes of training on two fast cores, and some "
          "for data and scores\n"
          f"clips: {counts} in {clips}", flush=True)
    for name, path in skipped.items():
        print(f"{name}: skipped, published weights are taken from {path}")
    for name, part in (*crab.named_children(), ("in all", crab)):
        print(f"  {name:16s} {sum(p.numel() for p in part.parameters()) / 1e6:7.2f} M parameters")


def print_parameters(name: str, module: torch.nn.Module, run: Run) -> None:
    """What a stage trains."""
    total = sum(p.numel() for p in module.parameters()) / 1e6
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    run.say(f"{name}: trains {trained:.2f} M of {total:.2f} M parameters, "
            f"{total - trained:.2f} M frozen")


def main(argv: list[str] | None = None) -> int:
    """Trains and evaluates; 2 with one line of reason where that cannot be."""
    try:
        train_and_evaluate(argv)
    except (ConfigError, DataError, CheckpointError, NonFiniteLoss, ValueError, OSError) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"train.py: out of memory, fewer rows in --instruct.batch and the like take less: "
              f"{str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:       # an Interrupted among them says how to go on
        advice = "train.py: stopped; the same command goes on after the last finished stage"
        print(str(stop) or advice, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
