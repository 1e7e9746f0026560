"""A full and a read-only disk under each folder: one line, nothing half, and it goes on when there is room."""

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from crab_mini.world.write import write

from .cases import said
from .child import Child
from .scenes import SCENES, SIZE, rendered, start

pytestmark = [pytest.mark.long, pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0,
                                                   reason="needs root: it mounts a tmpfs")]
FOLDERS = {"run": "train", "cache": "train", "shown": "eval"}       # folder of a scene -> the scene
PARTS = {"run": (9_000_000, 13_000_000, 17_000_000), "cache": (4096, 100_000), "shown": (4096,)}   # bytes


@contextmanager
def disk(place: Path, size: int):
    """A file system in memory of `size` bytes at a folder; what was in the folder is copied onto it."""
    place.mkdir(parents=True, exist_ok=True)
    kept = place.with_name(place.name + "_kept")
    shutil.copytree(place, kept)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted: {made.stderr.decode().strip()}")
    try:
        shutil.copytree(kept, place, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        shutil.rmtree(kept)


def remount(place: Path, options: str) -> None:
    """Another size, or read-only."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def refused(outcome, name: str) -> None:
    """One line and status 2, with the folder's name."""
    step = outcome.steps[0]
    lines = said(step.err)
    assert step.status == 2 and len(lines) == 1 and f"/{name}" in lines[0], f"{step.status}: {step.err} {step.error}"


@pytest.mark.parametrize("name, size", [(name, size) for name in FOLDERS for size in PARTS[name]])
def test_a_full_disk(name, size, folder, whole):
    scene = FOLDERS[name]
    place = folder / "full"
    shutil.rmtree(place, ignore_errors=True)
    (place / "work").mkdir(parents=True)
    SCENES[scene][1](place)
    # Whole pages: what is there already must fit, and a little more.
    used = sum(path.stat().st_size + 4096 for path in (place / name).rglob("*")) if name == "run" else 0
    with disk(place / name, max(size, used + 8192)):
        outcome = start(scene, place)
        if outcome.steps[0].status:
            refused(outcome, name)
            remount(place / name, "size=100m")
            outcome = start(scene, place)
        assert outcome.steps[0].status == 0, outcome.steps[0].err + outcome.steps[0].error
        assert SCENES[scene][2](place) == whole(scene)[1]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_read_only_disk(name, folder, whole):
    scene = FOLDERS[name]
    place = folder / "full"
    shutil.rmtree(place, ignore_errors=True)
    (place / "work").mkdir(parents=True)
    SCENES[scene][1](place)
    with disk(place / name, 100_000_000):
        remount(place / name, "ro")
        refused(start(scene, place), name)
        remount(place / name, "rw")
        assert start(scene, place).steps[0].status == 0
        assert SCENES[scene][2](place) == whole(scene)[1]


def render_program(place: Path):
    """`python -m crab_mini.world`, small."""
    from crab_mini.world.__main__ import main
    argv = ["--out", str(place), "--clips", "9", "--test-clips", "16", "--image", "16"]
    return [("world", main, argv)]


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_under_the_rendered_folder(how, folder):
    place, good_place = folder / "on_disk", folder / "rendered_well"
    write(good_place, **SIZE | {"cap": 300})
    expected = rendered(good_place)
    with disk(place, 400_000):
        if how == "read-only":
            remount(place, "ro")
        refused(Child(folder / "work", render_program(place)).wait(), place.name)
        remount(place, "rw,size=100m")
        assert Child(folder / "work", render_program(place)).wait().steps[0].status == 0
        assert rendered(place) == expected
