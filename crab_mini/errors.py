"""The errors of this project. Each is one line: where (a file, a stage), what was expected, what
was found.
"""

from pathlib import Path


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
