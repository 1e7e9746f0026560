"""What can go wrong at the border: each error is one line that says where, what was expected and what was found."""

from pathlib import Path


class DataError(ValueError):
    """One line about one file: `file: field: reason`."""

    def __init__(self, file: str | Path, field: str, reason: str):
        one_line = " ".join(reason.split())
        super().__init__("".join(c if c.isprintable() else "?" for c in f"{file}: {field}: {one_line}"))
        self.file, self.field, self.reason = str(file), field, one_line


class CheckpointError(RuntimeError):
    """One line: which file, what was expected, what was found."""


class WeightsError(ValueError):
    """One line: which file, parameter or field, what was expected, what was found."""


class NonFiniteLoss(RuntimeError):
    """One line: the stage, the step, the part and the samples whose loss or gradient is not a number."""


class Interrupted(KeyboardInterrupt):
    """One line: where the stage was stopped, and that --resume goes on from there."""

