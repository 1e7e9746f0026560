"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path

from .errors import CheckpointError


@contextlib.contextmanager
def one_line(path: Path, doing: str):
    """Turns an OSError (full disk, no permission, no such folder) into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be {doing}: {error.strerror or error}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that after any crash `path` holds either all of `data` or what it held before.

    Raises CheckpointError; then nothing is left behind.
    """
    part = path.with_name(path.name + ".part")
    with one_line(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)      # the new name itself must reach the disk, too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

