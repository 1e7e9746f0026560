"""Scenes -> a data set in the AV-UIE layout, with what pre-training needs beside it.

    clips/{vid}.png          film strip: ten frames, top to bottom        } the masters; the nine task folders
    clips/{vid}.flac         the sound                                    } hold hard links to them
    clips/{vid}.labels.png   class map of everything visible, as a strip
    classes.json             the names of the numbers in class maps (AVSBench's, a bank's own where one is unused)
    clips.json               vid -> scene seed and the boxes of what is seen (the scene itself follows from the seed)
    {task}/{train,test}.json and the media that AV-UIE's layout asks for

A clip poses every video task it can, and some of the tasks on frames; each split stops at `cap` rows a task.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from tqdm import tqdm

from ..av_uie.media import encode_classes
from ..errors import DataError
from .annotate import ROWS
from .bank import class_names
from .questions import avqa
from .render import Procedural, render
from .scene import MAX_SEED, RATE, SECONDS, SEED_STRIDE, TEST_SEED, WORLD, sample_scene
from .view import View

POSE = ROWS | {"avqa": avqa}
FRAME_TASKS = ("ms3", "avss", "ref_avs")       # their clips hold several frames: one of them for each training clip
QUESTIONS = 0.4                                # share of its seven or so questions that a training clip keeps
SHARE = dict(avvp=0.6, avcap=0.4, arig=0.6)    # share of the training clips that pose a task which all could


@dataclass(frozen=True)
class Plan:
    """What `write` is asked for; picklable, for the worker processes."""
    out: Path
    image: int
    bank: object


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """(n,T,H,W) bool -> (n,T,4) float: x0 y0 x1 y1 of what is seen, as fractions of the frame; zeros where nothing."""
    image = masks.shape[-1]
    columns, rows = masks.any(2), masks.any(3)                         # (n,T,W), (n,T,H)
    low = [axis.argmax(-1) for axis in (columns, rows)]
    high = [image - axis[..., ::-1].argmax(-1) for axis in (columns, rows)]
    boxes = np.stack([low[0], low[1], high[0], high[1]], -1) / image
    return boxes * masks.any((2, 3))[..., None]


def class_map(masks: np.ndarray, numbers: list[int]) -> np.ndarray:
    """(n,H,W) bool and each thing's class number -> (H,W) uint8, 0 where nothing is."""
    out = np.zeros(masks.shape[1:], np.uint8)
    for mask, number in zip(masks, numbers):
        out[mask] = number
    return out


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    os.link(source, target)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)


def _frames(row: dict, task: str, clip, maps: np.ndarray, view: View, folder: Path, vid: str) -> dict:
    """Writes the frames, sound and masks of one row of a task on frames; returns the row with its paths."""
    t = row.get("frame_idx", row.get("idx", 0))
    targets = row.pop("targets", [])
    if task == "arig":
        base, first = Path("media") / vid, (t,)
        image, sound = base / "frames" / f"{t}.png", base / "audio.flac"
    elif task == "ref_avs":
        base, first = Path("REFAVS/media") / vid, range(SECONDS)
        image, sound = base / "frames" / f"{t}.png", base / "audio.flac"
        row |= dict(vid=vid, uid=vid, fid=0)
        _save(Image.fromarray(255 * clip.masks[targets].any(0)[t].astype(np.uint8)),
              folder / task / "REFAVS/gt_mask" / vid / "fid_0" / f"{t:05d}.png")
    else:
        base = Path("AVS") / {"s4": "v1s", "ms3": "v1m", "avss": "v2"}[task] / vid
        first = {"s4": (t,), "ms3": range(5), "avss": range(SECONDS)}[task]
        image, sound = base / "frames" / f"{t}.png", base / "audio.flac"
        row |= dict(vid=vid, uid=vid)
        target = clip.masks[targets].any(0)[t]
        label = encode_classes(np.where(target, maps[t], 0)) if task == "avss" \
            else Image.fromarray(255 * target.astype(np.uint8))
        _save(label, folder / task / base / ("labels_rgb" if task == "avss" else "labels_semantic") / f"{t}.png")
    if task != "arig":
        _save(encode_classes(maps[t]), folder / task / base / "visible" / f"{t}.png")
    for second in first:
        _save(Image.fromarray(clip.frames[second]), folder / task / base / "frames" / f"{second}.png")
    _link(folder / "clips" / f"{vid}.flac", folder / task / sound)
    return row | dict(image_path=str(image), audio_path=str(sound))


def _video(row: dict, task: str, folder: Path, vid: str, number: int) -> dict:
    """Links the strip and the sound of one row of a task on videos; returns the row with its paths."""
    _link(folder / "clips" / f"{vid}.png", folder / task / "video" / f"{vid}.png")
    _link(folder / "clips" / f"{vid}.flac", folder / task / "audio" / f"{vid}.flac")
    names = {"ave": dict(vid=vid), "avvp": dict(vid=vid, filename=vid), "avcap": dict(video_id=vid),
             "avqa": dict(video_id=vid, question_id=number)}[task]
    return names | row | dict(video_path=f"{vid}.png", audio_path=f"{vid}.flac")


def write_clip(plan: Plan, job: tuple[str, int, tuple[str, ...]]) -> tuple[str, dict, list[tuple[str, dict]]]:
    """Renders and writes one clip and its rows. job: (vid, scene seed, tasks to pose)."""
    vid, seed, tasks = job
    scene = sample_scene(seed, tuple(plan.bank.categories))
    clip = render(scene, plan.image, plan.bank)
    boxes = boxes_of(clip.masks)
    view = View(scene, boxes)
    numbers = [class_names(plan.bank.categories).index(name) for name in view.names]
    maps = np.stack([class_map(clip.masks[:, t], numbers) for t in range(SECONDS)])       # (T,H,W)
    clips = plan.out / "clips"
    _save(Image.fromarray(clip.frames.reshape(-1, plan.image, 3)), clips / f"{vid}.png")
    _save(encode_classes(maps.reshape(-1, plan.image)), clips / f"{vid}.labels.png")
    soundfile.write(clips / f"{vid}.flac", clip.waveform, RATE, subtype="PCM_16", compression_level=0.0)
    rng, rows = np.random.default_rng([seed, 7]), []
    for task in tasks:
        for number, row in enumerate(POSE[task](view, rng)):
            if task == "avqa" and vid.startswith("train") and rng.random() > QUESTIONS:
                continue
            video = task in ("ave", "avvp", "avqa", "avcap")
            rows.append((task, _video(row, task, plan.out, vid, number) if video
                         else _frames(row, task, clip, maps, view, plan.out, vid)))
    return vid, dict(seed=seed, boxes=np.round(boxes, 5).tolist()), rows


def _jobs(split: str, clips: int, seed: int):
    """The clips of a split: test clips pose all tasks, training clips a share of them."""
    rng = np.random.default_rng([seed, split == "test"])
    for i in range(clips):
        tasks = [t for t in POSE if split == "test" or t not in FRAME_TASKS and rng.random() < SHARE.get(t, 1.0)]
        if split == "train":
            tasks.append(FRAME_TASKS[i % 3])
        scene = (TEST_SEED if split == "test" else 0) + seed * SEED_STRIDE + i
        yield f"{split}_{i:05d}", scene, tuple(tasks)


def _plain(value):
    """numpy numbers -> Python's, for JSON."""
    return value.item() if isinstance(value, np.generic) else value


def write(out: Path, clips: int, test_clips: int, image: int = 64, seed: int = 0, cap: int = 300,
          bank=None, workers: int | None = None) -> None:
    """Writes `clips` training and `test_clips` test clips and their annotations to a folder, with a progress bar.

    cap: rows a task at most in the test split (three times as many questions, they come in nine kinds). The JSON
    files are written last: a folder that has them is whole.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"--seed: expected 0 to {MAX_SEED}, found {seed}: beyond lie the test set's scenes and looks")
    plan = Plan(Path(out), image, bank or Procedural())
    classes = class_names(plan.bank.categories)
    (plan.out / "clips").mkdir(parents=True, exist_ok=True)
    masters = {}
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool, tqdm(total=clips + test_clips, desc="render", unit="clip") as bar:
        for split, count in (("train", clips), ("test", test_clips)):
            rows: dict[str, list] = {task: [] for task in POSE}
            for vid, master, found in pool.map(partial(write_clip, plan), _jobs(split, count, seed), chunksize=16):
                masters[vid] = master
                bar.update()
                for task, row in found:
                    if split == "train" or len(rows[task]) < cap * (3 if task == "avqa" else 1):
                        rows[task].append(row)
            for task, entries in rows.items():
                if count and not entries:
                    raise DataError(plan.out / task, split, f"{count} clips pose no sample of this task: make more")
                (plan.out / task).mkdir(exist_ok=True)
                path = plan.out / task / f"{split}.json"
                path.write_text(json.dumps(entries, default=_plain, indent=0))
    (plan.out / "classes.json").write_text(json.dumps(classes))
    (plan.out / "clips.json").write_text(json.dumps(
        dict(version=WORLD, image=image, rows_per_task=cap, categories=list(plan.bank.categories), clips=masters)))
