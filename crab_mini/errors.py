"""The errors of this project. Each is one line: where (a file, a stage), what was expected, what
was found.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

CLOSED_PIPE = 141       # 128 + SIGPIPE, what a shell reports of a program that writes to nobody


class DataError(ValueError):
    """A file of a data set cannot be used. One line: `file: field: reason`."""

    def __init__(self, file: str | Path, field: str, reason: str):
        one_line = " ".join(reason.split())
        text = f"{file}: {field}: {one_line}"
        # A file's name may hold control characters; a terminal must not obey them.
        super().__init__("".join(c if c.isprintable() else "?" for c in text))
        self.file, self.field, self.reason = str(file), field, one_line

    def __reduce__(self):
        """How a worker process hands the error to its parent."""
        return DataError, (self.file, self.field, self.reason)


class CheckpointError(RuntimeError):
    """A checkpoint or another file of a run cannot be written, read or used."""


class WeightsError(ValueError):
    """Published weights cannot be used: which file, parameter or field."""


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient is not finite: which stage, step, part and samples."""


class Interrupted(KeyboardInterrupt):
    """A stage was stopped by the user: where, and that --resume continues from there."""


def run_program(main: Callable[[], int]) -> int:
    """main's exit status; CLOSED_PIPE, without a word, where nobody reads its output any more.

    As in `... | head -1`. `main` lets a BrokenPipeError through.
    """
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()          # what is still to be written fails here and not at the end
    except BrokenPipeError:
        # The interpreter writes out what is left when it ends: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
