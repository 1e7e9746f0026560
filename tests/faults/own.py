"""Cases of eval.py on files of one's own: recordings, pictures, folders, and words of the command line."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import soundfile

from . import good, mutate
from .data import EVAL, Case, program

SOUNDS = ("a.wav", "a.flac", "a.ogg", "a.mp3")
PICTURES = ("a.jpg", "a.png", "a.webp", "a.bmp", "strip.png", "frames/1.jpg")
WORDS = ("\udcff", "x" * 100000, "<image>", "<answer>", "</s><s>", "\0", "", " ", "\n\n", "\x1b[2J", "-", "--",
         "é" * 999, "\U0001f980 ?", "what is heard first?")


def ask(own: Path, frames: str, audio: str, *more) -> tuple:
    """eval.py with one question."""
    question = () if "--question" in more else ("--question", "what is heard first?")
    return program("eval", *EVAL, "--frames", own / frames, "--audio", own / audio, "--task", "ask",
                   *question, *more)


def copied(folder: Path) -> Path:
    """The good files, to corrupt."""
    own = folder / "own"
    shutil.copytree(good.ROOT / "own", own)
    return own


def files(rng: random.Random, folder: Path) -> Case:
    """Bytes or place of a sound or of a picture."""
    own = copied(folder)
    frames, audio = rng.choice(PICTURES), rng.choice(SOUNDS)
    path = own / rng.choice((frames, audio))
    refused = False
    if rng.random() < 0.2:
        what = mutate.displaced(path, rng, good.ROOT / "outside/ave/video/a.png")
        # A user's own link is followed, and a picture that is missing makes a folder shorter.
        refused = what != "a link outside" and "frames" not in frames
    else:
        what, data = mutate.corrupted(path.read_bytes(), rng)
        path.write_bytes(data)
    shown = frames.split("/")[0]
    return Case(f"{path.relative_to(own)}: {what}", [ask(own, shown, audio)], (path.name, "frames"), None, refused)


def signals(rng: random.Random, folder: Path) -> Case:
    """Recordings that are whole and unusual: rates, channels, values, lengths."""
    own = copied(folder)
    rate = rng.choice((1, 999, 1000, 8000, 11025, 16000, 22050, 44100, 44101, 47999, 96001, 192000, 384000))
    channels = rng.choice((1, 1, 2, 3, 6, 8, 64, 65))
    seconds = rng.choice((0, 0.01, 0.4, 1, 3, 11))
    count = min(int(seconds * rate), 3_000_000 // channels)
    value = rng.choice((0.0, 1e-5, 0.5, 1.0, 5.0, 3e38, float("nan"), float("inf"), -1e30))
    wave = np.full((count, channels), value, np.float32)
    if rng.random() < 0.5:
        wave *= np.sin(np.arange(count, dtype=np.float32))[:, None]
    kind = rng.choice((("wav", "FLOAT"), ("wav", "DOUBLE"), ("wav", "PCM_16"), ("wav", "PCM_U8"), ("wav", "PCM_24")))
    path = own / f"a.{kind[0]}"
    soundfile.write(path, wave, rate, subtype=kind[1])
    what = f"{kind[1]} {rate} Hz, {channels} channels, {count} samples of {value:g}"
    return Case(what, [ask(own, "frames", path.name)], (path.name,))


def bombs(rng: random.Random, folder: Path) -> Case:
    """Small files that ask for much: long constant flacs, huge pictures, sparse files."""
    own = copied(folder)
    name = rng.choice(("flac", "flac", "png", "sparse wav", "sparse png", "many frames"))
    if name == "flac":
        rate, channels = rng.choice(((384000, 8), (192001, 2), (44101, 2), (383999, 1), (16000, 1)))
        seconds = rng.choice((20, 60, 100))
        path = own / "a.flac"
        with soundfile.SoundFile(path, "w", rate, channels, subtype="PCM_16") as file:
            block = np.full((rate, channels), 0.25, np.float32)
            for _ in range(seconds):
                file.write(block)
        case = ask(own, "frames", path.name)
        name = f"flac of {seconds} s, {rate} Hz, {channels} channels"
    elif name == "png":
        from PIL import Image
        path, side = own / "a.png", rng.choice((3000, 7900, 8100, 12000))
        Image.new("1", (side, side), 1).save(path)
        case, name = ask(own, path.name, "a.wav"), f"png of {side} x {side}"
    elif name == "many frames":
        path = own / "frames"
        for second in range(300):
            os.link(path / "0.jpg", path / f"{second + 3}.jpg")
        case = ask(own, "frames", "a.wav")
    else:
        path = own / f"a.{name.split()[1]}"
        with open(path, "r+b") as file:
            file.truncate(5 * 2 ** 30)
        frames, audio = ("a.jpg", path.name) if path.suffix == ".wav" else (path.name, "a.wav")
        case = ask(own, frames, audio)
    return Case(name, [case], (path.name,))


def words(rng: random.Random, folder: Path) -> Case:
    """Texts of the command line."""
    own = copied(folder)
    word = rng.choice(WORDS)
    option = rng.choice(("--question", "--question", "--task", "--second", "--out", "--ckpt", "--frames", "--audio"))
    if option == "--question":
        argv = ask(own, "frames", "a.wav", "--question", word)
    else:
        name, main, given = ask(own, "frames", "a.wav")
        if option in given:
            given[given.index(option) + 1] = word
        else:
            given += [option, word]
        argv = name, main, given
    return Case(f"{option} {word!r:.40}", [argv], ("",))


def outputs(rng: random.Random, folder: Path) -> Case:
    """Places where results go: links are followed to a regular file, all else that is no file is refused."""
    place = folder / "out.json"
    name = rng.choice(("FIFO", "link to a file", "link to nothing", "/dev/null link", "folder", "file", "-",
                       "link to itself"))
    kept = folder / "kept.json"
    kept.write_text("before")
    if name == "FIFO":
        os.mkfifo(place)
    elif name == "link to a file":
        place.symlink_to(kept)
    elif name == "link to nothing":
        place.symlink_to(folder / "new.json")
    elif name == "/dev/null link":
        place.symlink_to("/dev/null")
    elif name == "link to itself":
        place.symlink_to(place.name)
    elif name == "folder":
        place.mkdir()
    elif name == "file":
        place.write_text("before")
    option = rng.choice(("--json", "--predictions"))
    given = "-" if name == "-" else place
    before = place.lstat().st_mode if name != "-" else None

    def right() -> str:
        if before is not None and place.lstat().st_mode != before:
            return "the file was replaced by one of another kind"
        if name == "link to a file" and kept.read_text() == "before":
            return "the linked file holds no results"
        return ""
    argv = program("eval", *EVAL, "--data", good.ROOT / "mini", "--task", "ave", "--limit", 1, option, given)
    refused = name in ("FIFO", "folder", "link to itself")
    return Case(f"{option} to {name}", [argv], ("out.json",), right, refused)
