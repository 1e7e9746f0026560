"""Paths that stay inside a data folder, also when links are followed."""

import os
import stat
from pathlib import Path

from ..errors import DataError


class Inside:
    """Looks paths up in one data folder, each once: annotations name the same files many times."""

    def __init__(self, root: Path):
        self.root = root
        self.real_root: str | None = None       # without links; looked up at the first path
        self.real_folders: dict[str, str] = {}  # the same of the folders of paths
        self.known: dict[str, Path] = {}        # the paths that are inside

    def __call__(self, path: Path | str, file: str | Path, field: str) -> Path:
        """The path, if it stays inside the folder, whether there is a file or not; else DataError.

        file, field: where the path was written, for the error.
        """
        text = str(path)
        if text not in self.known:
            try:
                if not self.holds(text):
                    name = os.path.basename(text)
                    raise DataError(file, field, f"'{name}' leads outside the data folder")
            except (OSError, RuntimeError, ValueError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(file, field, f"no usable path: {error}") from error
            self.known[text] = Path(path)
        return self.known[text]

    def holds(self, text: str) -> bool:
        """Whether the path, or what its links lead to, is in the folder.

        Raises OSError for a link to itself and for a name that no file system takes.
        """
        if self.real_root is None:
            self.real_root = os.path.realpath(self.root)
        folder, name = os.path.split(text)
        if folder not in self.real_folders:
            self.real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self.real_folders[folder], name)
        try:
            if name in ("", ".", "..") or stat.S_ISLNK(os.lstat(real).st_mode):
                real = os.path.realpath(real)
                os.stat(real)
        except (FileNotFoundError, NotADirectoryError):
            pass                                # whoever opens the file says so
        return real == self.real_root or real.startswith(self.real_root.rstrip(os.sep) + os.sep)


def inside(path: Path, root: Path, file: str | Path, field: str) -> Path:
    """One path, looked up in the folder `root` as `Inside` does."""
    return Inside(root)(path, file, field)
