"""Answers with a trained model: a data set's test split, with scores, or files of your own.

    python eval.py --ckpt runs/tiny/crab.pt         # all tasks: scores, chance, baselines, intervals
    python eval.py --ckpt runs/tiny/crab.pt --data DIR --task ave,s4 --json scores.json
    python eval.py --ckpt runs/tiny/crab.pt --shuffle audio,video,both  # what each task really uses
    python eval.py --ckpt runs/tiny/crab.pt --show 4 --limit 4 --out shown
    python eval.py --ckpt runs/tiny/crab.pt --audio a.wav --frames DIR --task ask --question "what is heard first?"
    python eval.py --ckpt runs/tiny/crab.pt --audio a.wav --frames a.png --task s4 --out mine

An answer that cannot be parsed counts as wrong and is counted; official Crab's scripts leave it out.
Whatever cannot be done is one line and exit status 2.
"""

import argparse
import difflib
import sys
import time
from pathlib import Path

import torch

from crab_mini import bundle
from crab_mini.api import Predictor
from crab_mini.av_uie.rows import event_names, read_annotations, tasks_in
from crab_mini.av_uie.samples import decode
from crab_mini.config import ConfigError
from crab_mini.errors import CheckpointError, DataError, run_program
from crab_mini.evaluation.generate import SHUFFLES, answer, partners
from crab_mini.evaluation.pictures import masks_of, picture_of, save
from crab_mini.evaluation.score import score
from crab_mini.evaluation.tables import as_json, comparison, lines, table
from crab_mini.features.encoders import Features
from crab_mini.features.rows import Split, left_out
from crab_mini.files import STDOUT, must_be_writable, write_result
from crab_mini.options import Parser, add_arithmetic_options, device_and_precision
from crab_mini.tasks.base import TASKS, load_plugin, parse_tasks
from crab_mini.tasks.score import Answer

# Options for files of one's own, and options for a data set.
OWN = ("audio", "frames", "question", "expression", "second")
SET = ("data", "shuffle", "json", "predictions", "show", "limit", "skip_bad")


def parser() -> Parser:
    """The options."""
    made = Parser(prog="eval.py", description=__doc__, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="a trained model, crab.pt")
    made.add_argument("--task", help="all, or names with commas (default: those it was trained on): " + ",".join(TASKS)
                      + "; of your own files one of these, or ask")
    made.add_argument("--plugin", type=Path, metavar="FILE", help="a task of your own (data/README.md)")
    add_arithmetic_options(made)
    made.add_argument("--cache-features", type=Path, metavar="DIR", help="keep the encoders' features for later runs")
    made.add_argument("--out", type=Path, metavar="DIR", help="where pictures go (default: shown, beside the model)")
    whole = made.add_argument_group("a data set")
    whole.add_argument("--data", type=Path, metavar="DIR",
                       help="in the AV-UIE layout (default: what it was trained on)")
    whole.add_argument("--limit", type=int, metavar="N", help="the first N samples of each task")
    whole.add_argument("--skip-bad", action="store_true", help="leave out what is broken in --data, and list it")
    whole.add_argument("--shuffle", metavar="WHICH", help="again with another clip's audio, video or both; several "
                                                          "with commas")
    whole.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the scores as JSON, instead of the table "
                                                                            "or into a file")
    whole.add_argument("--predictions", type=Path, metavar="FILE", help="one JSON line for each sample")
    whole.add_argument("--show", type=int, metavar="N", help="draw N samples of each task, a PNG each")
    own = made.add_argument_group("files of your own")
    own.add_argument("--frames", type=Path, metavar="PATH", help="a folder with a picture a second, a picture, a video")
    own.add_argument("--audio", type=Path, metavar="FILE", help="their sound (default: the video's)")
    own.add_argument("--question", metavar="TEXT", help="of ask (or avqa)")
    own.add_argument("--expression", metavar="TEXT", help="of ref_avs, such as: the object making the loudest sound")
    own.add_argument("--second", type=int, metavar="N", help="of ms3, avss, ref_avs; the frame of arig and s4")
    return made


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as that goes without opening a file."""
    made = parser()
    options, rest = made.parse_known_args(argv)
    if rest:
        names = [name for action in made._actions for name in action.option_strings]
        close = difflib.get_close_matches(rest[0].split("=")[0], names, n=2, cutoff=0.5)
        advice = f"nearest: {', '.join(close)}" if close else "eval.py --help lists them"
        raise ConfigError(f"{rest[0]}: no such option; {advice}")

    # Files of one's own, or a data set: options of the other kind mean nothing.
    options.own = options.frames is not None or options.audio is not None
    for name in SET if options.own else OWN:
        value = getattr(options, name)
        if value is not None and value is not False:
            reason = "needs --frames, files of your own"
            if options.own:
                reason = "is for data sets, not for --frames and --audio"
            raise ConfigError(f"--{name.replace('_', '-')}: {reason}")
    for name, least in (("limit", 1), ("show", 1), ("second", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}: expected at least {least}, found {value}")

    # What is to be exchanged.
    words = [] if options.shuffle is None else options.shuffle.split(",")
    options.shuffle = [word.strip() for word in words]
    for word in options.shuffle:
        if word not in SHUFFLES:
            raise ConfigError(f"--shuffle: expected some of {', '.join(SHUFFLES)}, found '{word}'")

    # The task; a plugin adds its own to those that can be named.
    load_plugin(options.plugin)
    aliases = {task.alias: name for name, task in TASKS.items() if task.alias}
    if options.own:
        check_own(options, aliases)
    elif options.task in aliases:
        raise ConfigError(f"--task {options.task}: needs --frames and --audio, files of your own; "
                          f"of a data set it is {aliases[options.task]}")
    if options.out and not (options.own or options.show):
        raise ConfigError("--out: is for the pictures of --show or --frames")

    # What was left out.
    options.given, options.pictured = options.task, options.out is not None
    options.task = "all" if options.task is None else options.task
    options.out = options.out or options.ckpt.parent / "shown"
    return options


def check_own(options: argparse.Namespace, aliases: dict[str, str]) -> None:
    """ConfigError unless one task is asked for, with all that it needs and nothing that it does not.

    aliases: other names of tasks, {"ask": "avqa"}.
    """
    if options.frames is None:
        raise ConfigError("--audio: needs --frames, what is seen (a folder, a picture or a video)")
    asked, names = options.task, [*TASKS, *aliases]
    if asked not in names:
        close = difflib.get_close_matches(asked or "", names, n=2, cutoff=0.5) or names
        raise ConfigError(f"--task: expected one for files of your own, found {asked or 'none'}; "
                          f"nearest: {', '.join(close)}")
    options.task = aliases.get(asked, asked)
    task = TASKS[options.task]
    for name in ("question", "expression", "second"):
        value, needed = getattr(options, name), name in task.own_options
        if needed and value in (None, ""):
            raise ConfigError(f"--task {asked} needs --{name}")
        one_frame = name == "second" and task.frames == 1       # the user may say which
        if value is not None and not needed and not one_frame:
            raise ConfigError(f"--{name}: task {asked} takes none")


def place(options: argparse.Namespace, facts: dict) -> tuple[Path, list[str]]:
    """The data folder and the tasks to evaluate; those that the folder lacks are named."""
    data = options.data or Path(facts["data"])
    if options.data is None and not data.is_dir():
        raise ConfigError(f"--data: the folder that {options.ckpt} was trained on, {data}, is not "
                          "here: name one")
    wanted = options.tasks if options.given else facts["tasks"]
    there, lacking = tasks_in(data, "test", wanted)
    if lacking:
        print(f"{data} has no test.json of {', '.join(lacking)}: left out", file=sys.stderr)
    return data, there


def prepare(data: Path, tasks: list[str], features: Features, tokenizer, options) -> Split:
    """The samples to answer; with --skip-bad what is left out is listed."""
    problems = [] if options.skip_bad else None
    split = Split(data, "test", tasks, features, tokenizer, options.limit, problems)
    if problems:
        count = len(set(map(str, problems)))
        print(left_out(f"--skip-bad leaves out {count} bad sample(s):", problems), file=sys.stderr)
    return split


def draw(task: str, answers: list[Answer], data: Path, options, size: int) -> None:
    """--show: N samples of a task, evenly spread over it, a PNG each."""
    known = {row.uid: row for row in read_annotations(data, "test", [task], problems=[])}
    count = min(options.show, len(answers))
    for k in [i * len(answers) // count for i in range(count)]:
        row = known[answers[k].sample.uid]
        image = picture_of(decode(row, size), answers[k], TASKS[task].answer(row.fields))
        save(image, options.out / f"{task}_{row.index}.png")


def evaluate(crab, tokenizer, features: Features, facts: dict, options) -> None:
    """Scores, shuffled scores, predictions and pictures of a data set's test split."""
    began = time.monotonic()

    # Whether results can be written, and partners found, is known before minutes go by.
    for path in (options.predictions, options.json and Path(options.json),
                 options.show and options.out / "ave_0.png"):
        if path:
            must_be_writable(path)
    data, tasks = place(options, facts)
    split, names = prepare(data, tasks, features, tokenizer, options), event_names(data)
    tasks = [task for task in tasks if split.by_task[task]]
    for task in tasks if options.shuffle else []:
        partners(split.of(task))

    # Every task is answered as it is, then with each of the exchanges.
    found, predictions = {how: {} for how in (None, *options.shuffle)}, []
    for task in tasks:
        for how in found:
            answers = answer(crab, tokenizer, split, task, features.device, features.precision, how)
            found[how][task] = score(task, answers, names)
            predictions += lines(answers, found[how][task], how) if options.predictions else []
            if options.show and how is None:
                draw(task, answers, data, options, crab.cfg.vision.image)
    results = found.pop(None)

    # The files first, then the table.
    if options.predictions:
        write_result(options.predictions, "".join(f"{line}\n" for line in predictions).encode())
    if options.json is not None:
        minutes = round((time.monotonic() - began) / 60, 2)
        content = as_json(results, found, checkpoint=str(options.ckpt), data=str(data),
                          split="test", limit=options.limit, device=features.device.type,
                          precision=features.precision, minutes=minutes)
        write_result(Path(options.json), f"{content}\n".encode())
    if options.json != STDOUT:
        print(comparison(results, found) if found else table(results))
    for what, where in (("pictures", options.show and options.out),
                        ("predictions", options.predictions)):
        if where:
            print(f"{what}: {where}", file=sys.stderr)


def ask(crab, tokenizer, features: Features, facts: dict, options) -> None:
    """The answer about the user's own files; masks, and with --out a picture of all, as PNG."""
    task = options.tasks[0]
    reply = Predictor(tokenizer, facts, features).ask(
        options.frames, options.audio, options.question or "", task=task, second=options.second,
        expression=options.expression or "")

    # The answer in words.
    seconds = " ".join(map(str, reply.sample.seconds))
    prompt = TASKS[task].prompt(reply.sample.fields)
    print(f"seconds: {seconds}\nprompt: {prompt}\nanswer: {reply.text}")
    if reply.parsed is None:
        print(f"This is no readable answer of {task}.")

    # Its masks, as large as the frame, and the picture.
    for name, mask in masks_of(reply.answer, reply.frame_size).items():
        share = mask.histogram()[255] / (mask.width * mask.height)
        print(f"mask: {save(mask, options.out / name)} ({share:.1%} of the frame)")
    if options.pictured:
        print(f"picture: {save(reply.picture(), options.out / f'{task}.png')}")


def main(argv: list[str] | None = None) -> int:
    """Answers; 2 with one line of reason where that cannot be."""
    try:
        options = arguments(argv)
        device, precision = device_and_precision(options.device, options.precision)
        options.tasks = parse_tasks(options.task)
        crab, tokenizer, facts = bundle.load(options.ckpt, options.kernel)
        bundle.require(options.ckpt, facts)
        features = Features(crab.to(device), device, precision, options.cache_features)
        (ask if options.own else evaluate)(crab, tokenizer, features, facts, options)
    except BrokenPipeError:
        raise                               # see run_program
    except (ConfigError, DataError, CheckpointError, ValueError, OSError) as error:
        print(f"eval.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"eval.py: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
