"""Files that are written whole or not at all, and never over what is no file."""

import contextlib
import os
import sys
from pathlib import Path

from .errors import CheckpointError

STDOUT = "-"                # as the name of an output: standard output


@contextlib.contextmanager
def one_line(path: Path, doing: str):
    """Turns an OSError (full disk, no permission, no such folder) into a CheckpointError that names
    the file.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be {doing}: {error.strerror or error}") from error


def target_of(path: Path) -> Path:
    """The regular file that a name stands for, whether it exists yet or not; links are followed.

    Raises CheckpointError for a folder, a pipe, a device such as /dev/null, and a link in a circle:
    a new file would take their place.
    """
    with one_line(path, "written"):
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise CheckpointError(f"{path}: cannot be written: a link that leads to itself")
        if target.is_dir():
            raise CheckpointError(f"{path}: cannot be written: is a folder")
        if target.exists() and not target.is_file():
            raise CheckpointError(f"{path}: cannot be written: not a regular file "
                                  f"('{STDOUT}' stands for standard output where one is asked for)")
    return target


def must_be_writable(path: Path) -> None:
    """CheckpointError now rather than after the work, if a file cannot be written there."""
    if str(path) == STDOUT:
        return
    with one_line(path, "written"):
        target = target_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = target.with_name(f".{target.name}.probe")
        probe.touch()
        probe.unlink()


def write_result(path: Path, data: bytes) -> None:
    """`write_whole`, or standard output where `path` is STDOUT."""
    if str(path) != STDOUT:
        write_whole(path, data)
        return
    with one_line(path, "written"):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that after any crash `path` holds either all of `data` or what it held
    before.

    Raises CheckpointError, as `target_of` does and for a full disk; then nothing is left behind.
    """
    target = target_of(path)
    part = target.with_name(target.name + ".part")
    with one_line(path, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # What a crash has left under this name may be anything; it is not written into.
            part.unlink(missing_ok=True)
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)    # the new name itself must reach the disk
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
