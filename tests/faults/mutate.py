"""Corruptions: of bytes, of JSON values and texts, of places on the disk. Each is drawn by a `random.Random`."""

import copy
import json
import os
import random
import socket
from pathlib import Path

MARKS = ("<image>", "<audio>", "<mask_start>", "<mask_0>", "<mask_3><mask_4>", "<answer>", "<s>", "</s>",
         "<event>", "<range> 9,1 </range>", "<video>")
VALUES = (None, True, False, -1, 0, 11, 10 ** 9, 10 ** 30, 0.5, float("nan"), float("inf"), -0.0, "", "   ",
          "\ud800", [], [[]], {}, {"a": 1}, "/etc/passwd", "../../../outside/s4/AVS/v1s/u/audio.wav",
          "../outside/ave/video/a.png", "..", ".", "/dev/zero", "a\nb\0c", "x" * 3000, "C:\\a.png", "\x1b[2Jx",
          "9" * 5000, "a" * 100000, *MARKS)


# ---- bytes

def flip(data: bytes, rng: random.Random, times: int, head: int = 0) -> bytes:
    """Some bits flipped, in the first `head` bytes if that is given."""
    made = bytearray(data)
    for _ in range(times):
        made[rng.randrange(min(head or len(data), len(data)))] ^= 1 << rng.randrange(8)
    return bytes(made)


def corrupted(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes), of a file that is not empty."""
    n, at = len(data), rng.randrange(len(data))
    block = rng.choice((1, 4, 64, 1000))
    big = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80"))
    made = {
        "a flipped bit": lambda: flip(data, rng, 1),
        "three flipped bits": lambda: flip(data, rng, 3),
        "a flipped bit in the head": lambda: flip(data, rng, 1, 64),
        "thirty flipped bits in the head": lambda: flip(data, rng, 30, 200),
        "cut": lambda: data[:at],
        "the last byte missing": lambda: data[:-1],
        "the head missing": lambda: data[rng.choice((1, 4, 16)):],
        "a block missing": lambda: data[:at] + data[at + block:],
        "a block twice": lambda: data[:at + block] + data[at:],
        "a block of zeros": lambda: (data[:at] + bytes(block) + data[at + block:])[:n],
        "noise inserted": lambda: data[:at] + rng.randbytes(block) + data[at:],
        "noise behind": lambda: data + rng.randbytes(block),
        "a large number in the head": lambda: put(data, big, rng.randrange(min(n, 80))),
        "a large number": lambda: put(data, big, at),
        "noise": lambda: rng.randbytes(n),
        "zeros": lambda: bytes(n),
        "empty": lambda: b"",
        "text": lambda: b"<!DOCTYPE html><title>404</title>\n" * 9,
        "twice": lambda: data + data,
    }
    name = rng.choice(sorted(made))
    return name, made[name]()


def put(data: bytes, new: bytes, at: int) -> bytes:
    """Bytes overwritten at a place."""
    return data[:at] + new + data[at + len(new):]


# ---- places on the disk

def displaced(path: Path, rng: random.Random, outside: Path) -> str:
    """Puts something that is no regular file inside the folder at `path`. outside: a good file elsewhere."""
    path.unlink()
    made = {
        "gone": lambda: None,
        "a folder": path.mkdir,
        "a FIFO": lambda: os.mkfifo(path),
        "a socket": lambda: bound(path),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a link outside": lambda: path.symlink_to(outside.resolve()),
    }
    name = rng.choice(sorted(made))
    made[name]()
    return name


def bound(path: Path) -> None:
    """A Unix socket; its address may be 107 characters long only, so it is made from inside the folder."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


# ---- JSON

def places(value, at: tuple = ()) -> list[tuple]:
    """The paths of all values inside a JSON value, its own first."""
    found = [at]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*at, key))
    return found


def changed(value, rng: random.Random, values=VALUES, within: tuple = ()) -> tuple[str, object]:
    """One value replaced, removed, doubled or buried. within: only below this path."""
    value = copy.deepcopy(value)
    inside = value
    for key in within:
        inside = inside[key]
    at = (*within, *rng.choice(places(inside)))
    if not at:
        new = rng.choice(values)
        return f"the whole replaced by {new!r:.40}", new
    holder = value
    for key in at[:-1]:
        holder = holder[key]
    shown = ".".join(map(str, at))
    what = rng.choice(("replaced",) * 6 + ("removed", "a list", "buried", "a string"))
    if what == "replaced":
        new = rng.choice(values)
        holder[at[-1]] = new
        return f"{shown} = {new!r:.40}", value
    if what == "removed":
        del holder[at[-1]]
    elif what == "a list":
        holder[at[-1]] = [holder[at[-1]]]
    elif what == "a string":
        holder[at[-1]] = str(holder[at[-1]])
    else:
        holder[at[-1]] = nested(holder[at[-1]], 300)
    return f"{shown} {what}", value


def nested(value, depth: int):
    """A value inside lists inside lists."""
    for _ in range(depth):
        value = [value]
    return value


def corrupted_text(text: str, rng: random.Random) -> tuple[str, bytes]:
    """JSON that is none, or that is unusual."""
    data = text.encode()
    made = {
        "a byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda: text.encode("utf-16"),
        "deeply nested": lambda: b"[" * 200000,
        "deeply nested objects": lambda: b'{"a":' * 100000,
        "a number of 5,000 digits": lambda: b"[" + b"9" * 5000 + b"]",
        "a comma too much": lambda: data[:-1] + b"," + data[-1:],
        "behind each other": lambda: data + data,
        "NaN": lambda: b"[NaN]",
        "null": lambda: b"null",
        "an empty list": lambda: b"[]",
        "an empty object": lambda: b"{}",
        "a list of numbers": lambda: b"[1, 2, 3]",
        "a list of nulls": lambda: b"[null, null]",
    }
    name = rng.choice([*sorted(made), *["bytes"] * 6])
    return corrupted(data, rng) if name == "bytes" else (name, made[name]())


def dump(value) -> bytes:
    """JSON of any value, NaN and surrogates too."""
    return json.dumps(value).encode()
