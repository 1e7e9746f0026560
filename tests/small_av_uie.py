"""A complete AV-UIE folder of all nine tasks in some kilobytes, for the tests: real formats, invented content."""

import json
import shutil
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from crab_mini.av_uie.media import encode_classes

SIDE = 24                       # frames are SIDE x SIDE
GREEN, RED = 7, 22              # AVSBench classes bird and emergency-car


def tone(path: Path, seconds: float = 10.0, rate: int = 16000, hertz: float = 440.0, channels: int = 1) -> Path:
    """A sine wave in whatever format the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate)
    return path


def picture(path: Path, value: int = 100, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """One colour, with a lighter left half so that a frame is not flat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), value, np.uint8)
    pixels[:, :size[0] // 2] += 40
    Image.fromarray(pixels).save(path)
    return path


def strip(path: Path, frames: int = 10) -> Path:
    """A film strip whose frame t has the grey value 20 t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.repeat(20 * np.arange(frames, dtype=np.uint8), SIDE)
    Image.fromarray(np.broadcast_to(values[:, None, None], (frames * SIDE, SIDE, 3)).copy()).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """The upper left quarter belongs to the object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((size[1], size[0]), np.uint8)
    values[:size[1] // 2, :size[0] // 2] = 255
    Image.fromarray(values).save(path)
    return path


def classes(path: Path) -> Path:
    """A bird in the upper left quarter, an emergency car in the lower right one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:SIDE // 2, :SIDE // 2], values[SIDE // 2:, SIDE // 2:] = GREEN, RED
    encode_classes(values).convert("RGB").save(path)
    return path


def video(path: Path, seconds: int = 10, rate: int = 5, size: tuple[int, int] = (48, 32), codec: str = "mpeg4",
          sound: bool = True, key_frames: int = 12) -> Path:
    """A video whose second s has the grey value 20 + 20 s, with a 440 Hz soundtrack; written through PyAV."""
    import av
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(codec, rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt = *size, "yuv420p"
        pictures.gop_size = key_frames
        wave = container.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000) if sound else None
        for index in range(seconds * rate):
            pixels = np.full((size[1], size[0], 3), 20 + 20 * (index // rate), np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(pictures.encode())
        if sound:
            samples = (0.3 * np.sin(2 * np.pi * 440 * np.arange(seconds * 48000) / 48000)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            frame.rate = 48000
            container.mux(wave.encode(frame))
            container.mux(wave.encode())
    return path


def write(root: Path, task: str, rows: list[dict], splits: tuple[str, ...] = ("train", "test")) -> None:
    """The annotations of one task."""
    for split in splits:
        (root / task).mkdir(parents=True, exist_ok=True)
        (root / task / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def _video_tasks(root: Path) -> None:
    clip = dict(video_path="a.png", audio_path="a.wav")
    rows = {
        "ave": dict(vid="a", event="Bell", start_time=2, end_time=6, **clip,
                    label_content="A bell. <event> Bell </event> <range> 2,6 </range>."),
        "avvp": dict(vid="a", filename="a_0_10", event="Bell,Dog", **clip,
                     label_content="<visual_event>Bell,(0 1),(3 6)</visual_event><audio_event>Dog,(2 4)</audio_event>"),
        "avqa": dict(video_id="a", question_id=1, type='["Audio-Visual", "Counting"]', question="How many?",
                     answer="two", label="There are <answer> two </answer>", **clip),
        "avcap": dict(video_id="a", label_content="A bell rings.", **clip)}
    for task, row in rows.items():
        strip(root / task / "video" / "a.png")
        tone(root / task / "audio" / "a.wav", hertz=600)
        write(root, task, [row])


def _picture_tasks(root: Path) -> None:
    for task, folder, count in (("s4", "v1s", 5), ("ms3", "v1m", 5), ("avss", "v2", 10)):
        clip = root / task / "AVS" / folder / "u"
        for second in range(count):
            picture(clip / "frames" / f"{second}.jpg", 20 * second)
        tone(clip / "audio.wav", count)
        (classes if task == "avss" else mask)(clip / ("labels_rgb" if task == "avss" else "labels_semantic") / "3.png")
        write(root, task, [dict(vid="v", uid="u", a_obj="bird, emergency-car", frame_idx=3,
                                image_path=f"AVS/{folder}/u/frames/3.jpg", audio_path=f"AVS/{folder}/u/audio.wav",
                                label_content="The bird sings.")])
    picture(root / "arig/media/b/frames/1.jpg")
    tone(root / "arig/media/b/audio.flac", 5)
    write(root, "arig", [dict(a_obj="bird", image_path="media/b/frames/1.jpg", audio_path="media/b/audio.flac",
                              label_content="The bird: (10,20),(110,220)", top_left=[10, 20],
                              bottom_right=[110, 220])])
    for second in range(10):
        picture(root / f"ref_avs/REFAVS/media/c/frames/{second}.jpg", 20 * second)
    tone(root / "ref_avs/REFAVS/media/c/audio.ogg")
    mask(root / "ref_avs/REFAVS/gt_mask/c/fid_1/00007.png")
    write(root, "ref_avs", [dict(vid="c", uid="c_bird_1", fid=1, idx=7, description="the bird",
                                 image_path="REFAVS/media/c/frames/7.jpg", audio_path="REFAVS/media/c/audio.ogg",
                                 output="It is the bird.")])


def build(root: Path) -> Path:
    """All nine tasks, one good sample in each split."""
    _video_tasks(root)
    _picture_tasks(root)
    return root


def copy(source: Path, target: Path) -> Path:
    """A fresh copy to damage."""
    shutil.copytree(source, target)
    return target
