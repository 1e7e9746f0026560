"""Scenes -> a data set in the AV-UIE layout, with what pre-training needs beside it.

    clips/{vid}.png          film strip: ten frames, top to bottom        } the masters; the nine task folders
    clips/{vid}.flac         the sound                                    } hold hard links to them
    clips/{vid}.labels.png   class map of everything visible, as a strip
    classes.json             the names of the numbers in class maps (AVSBench's, a bank's own where one is unused)
    clips.json               vid -> scene seed and the boxes of what is seen (the scene itself follows from the seed)
    {task}/{train,test}.json and the media that AV-UIE's layout asks for

A clip poses every video task it can, and some of the tasks on frames; each split stops at `cap` rows a task.
"""

import io
import json
import os
import threading
import time
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
from ..files import one_line, write_whole
from ..tasks.base import TASKS
from .annotate import ROWS
from .bank import class_names
from .questions import avqa, one_question
from .render import Procedural, render
from .scene import MAX_SEED, RATE, SECONDS, SEED_STRIDE, TEST_SEED, WORLD, sample_scene
from .view import View

POSE = ROWS | {"avqa": avqa}                    # task -> rows that a scene poses
POSE_ONE = POSE | {"avqa": one_question}        # the same with one question, which is quicker
# Tasks on pictures whose clips show several frames: one of them for each training clip.
FRAME_TASKS = tuple(name for name, task in TASKS.items() if not task.on_video and task.frames > 1)
KEPT = dict(avqa=0.4)                           # share of its rows that a training clip keeps
SHARE = dict(avvp=0.6, avcap=0.4, arig=0.6)     # share of the training clips that pose a task which all could
PARENT_CHECK = 1.0                              # seconds between two looks of a worker for its parent
MORE_TEST_ROWS = dict(avqa=3)                   # times `cap`: questions come in nine kinds


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


def link(source: Path, target: Path) -> None:
    """Makes `target` another name of a file; CheckpointError if that cannot be."""
    with one_line(target, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.link(source, target)


def put(data: io.BytesIO, path: Path) -> None:
    """Writes a file anew; CheckpointError if that cannot be, such as on a full disk."""
    with one_line(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)        # it may share its bytes with other names
        path.write_bytes(data.getbuffer())


def save(image: Image.Image, path: Path) -> None:
    """Writes a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    put(buffer, path)


def save_sound(waveform: np.ndarray, path: Path) -> None:
    """Writes a waveform (S,) as FLAC of 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, RATE, format="FLAC", subtype="PCM_16", compression_level=0.0)
    put(buffer, path)


def save_json(content, path: Path, **options) -> None:
    """Writes JSON so that the file is whole whenever it is there."""
    write_whole(path, json.dumps(content, **options).encode())


def end_with_parent() -> None:
    """Run in each worker: it ends when its parent does, whatever ended the parent."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def with_known_keys(row: dict, task: str, **values) -> dict:
    """The values whose keys the task's annotations have, then the row."""
    return {key: value for key, value in values.items() if key in TASKS[task].fields} | row


def write_frames(row: dict, task: str, clip, maps: np.ndarray, folder: Path, vid: str) -> dict:
    """Writes the frames, sound and masks of one row of a task on pictures; returns the row with its paths."""
    t = row.get("frame_idx", row.get("idx", 0))
    targets = row.pop("targets", [])
    spec, base = TASKS[task], Path(TASKS[task].clips_folder) / vid
    image, sound = base / "frames" / f"{t}.png", base / "audio.flac"
    row |= with_known_keys({}, task, vid=vid, uid=vid, fid=0)
    row |= dict(image_path=str(image), audio_path=str(sound))

    # The mask of the frame in question, and the class map of everything in it.
    if spec.masks:
        mask = clip.masks[targets].any(0)[t]                                              # (H,W)
        path = spec.mask_path(row, folder / task / image, vid)
        label = encode_classes(np.where(mask, maps[t], 0)) if spec.by_class else \
            Image.fromarray(255 * mask.astype(np.uint8))
        save(label, path)
        save(encode_classes(maps[t]), folder / task / base / "visible" / f"{t}.png")

    for second in (t,) if spec.frames == 1 else range(spec.frames):
        save(Image.fromarray(clip.frames[second]), folder / task / base / "frames" / f"{second}.png")
    link(folder / "clips" / f"{vid}.flac", folder / task / sound)
    return row


def link_video(row: dict, task: str, folder: Path, vid: str, number: int) -> dict:
    """Links the strip and the sound of one row of a task on videos; returns the row with its paths."""
    link(folder / "clips" / f"{vid}.png", folder / task / "video" / f"{vid}.png")
    link(folder / "clips" / f"{vid}.flac", folder / task / "audio" / f"{vid}.flac")
    named = with_known_keys(row, task, vid=vid, filename=vid, video_id=vid, question_id=number)
    return named | dict(video_path=f"{vid}.png", audio_path=f"{vid}.flac")


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
    save(Image.fromarray(clip.frames.reshape(-1, plan.image, 3)), clips / f"{vid}.png")
    save(encode_classes(maps.reshape(-1, plan.image)), clips / f"{vid}.labels.png")
    save_sound(clip.waveform, clips / f"{vid}.flac")
    rng, rows = np.random.default_rng([seed, 7]), []
    for task in tasks:
        for number, row in enumerate(POSE[task](view, rng)):
            if task in KEPT and vid.startswith("train") and rng.random() > KEPT[task]:
                continue
            if TASKS[task].on_video:
                row = link_video(row, task, plan.out, vid, number)
            else:
                row = write_frames(row, task, clip, maps, plan.out, vid)
            rows.append((task, row))
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
    files are written last, clips.json after all others: a folder that has it is whole. Raises DataError for a bank's
    file, CheckpointError where a file cannot be written.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"--seed: expected 0 to {MAX_SEED}, found {seed}: beyond lie the test set's scenes and looks")
    plan = Plan(Path(out), image, bank or Procedural())
    classes = class_names(plan.bank.categories)
    # clips/ without clips.json means that the rendering was stopped (av_uie/rows.py refuses it).
    with one_line(plan.out, "written"):
        (plan.out / "clips").mkdir(parents=True, exist_ok=True)
        (plan.out / "clips.json").unlink(missing_ok=True)
    masters = {}
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool, \
            tqdm(total=clips + test_clips, desc="render", unit="clip") as bar:
        for split, count in (("train", clips), ("test", test_clips)):
            rows: dict[str, list] = {task: [] for task in POSE}
            for vid, master, found in pool.map(partial(write_clip, plan), _jobs(split, count, seed), chunksize=16):
                masters[vid] = master
                bar.update()
                for task, row in found:
                    if split == "train" or len(rows[task]) < cap * MORE_TEST_ROWS.get(task, 1):
                        rows[task].append(row)
            for task, entries in rows.items():
                if count and not entries:
                    raise DataError(plan.out / task, split, f"{count} clips pose no sample of this task: make more")
                save_json(entries, plan.out / task / f"{split}.json", default=_plain, indent=0)
    save_json(classes, plan.out / "classes.json")
    save_json(dict(version=WORLD, image=image, rows_per_task=cap,
                   categories=list(plan.bank.categories), clips=masters), plan.out / "clips.json")
