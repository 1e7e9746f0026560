"""A process that dies at its n-th write: before it, or in the middle of it.

Python tells an audit hook of every file that is opened, renamed, linked or removed. Dying at the
n-th such event is a kill before that write, and after the one that came before. To die inside a
write, the size that a file may have is limited when it is opened: the kernel then ends the process
(SIGXFSZ) after the first bytes.
"""

import os
import resource
import signal
import sys
from pathlib import Path

CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.link": 1, "os.truncate": 0}  # event -> which argument
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
FIRST_BYTES = 3                 # that still reach the file of a write in whose middle the process dies
MODES = ("before", "inside")


class Events:
    """The writes of a process below some folders; optionally it dies at one of them."""

    def __init__(self, folders: list[Path], log: Path, die_at: int | None = None, mode: str = "before"):
        self.folders, self.die_at, self.mode = [str(folder.resolve()) for folder in folders], die_at, mode
        self.count, self.pid = 0, os.getpid()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)       # Python ignores it otherwise
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        """Called by Python for each event of any kind, in every process that descends from this one."""
        if os.getpid() != self.pid:
            return
        if event == "open":
            path, flags = arguments[0], arguments[2]
            if not flags & WRITING:
                return
        elif event in CHANGES:
            path = arguments[CHANGES[event]]
        else:
            return
        if not isinstance(path, (str, os.PathLike)):
            return
        path = os.path.abspath(path)
        if any(path.startswith(folder) for folder in self.folders):
            self.change(event, path)

    def change(self, event: str, path: str) -> None:
        """One write."""
        os.write(self.log, f"{event} {os.path.basename(path)}\n".encode())
        if self.count == self.die_at and self.mode == "before":
            os._exit(137)
        if self.count == self.die_at and event == "open":
            size = os.path.getsize(path) if os.path.exists(path) else 0
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + FIRST_BYTES, hard))
        self.count += 1


def dying(main, folders: list[Path], log: Path, die_at: int | None = None, mode: str = "before"):
    """A program that dies at one of its writes, or, with None, only lists them in `log`."""
    def run(argv: list[str]) -> int:
        Events(folders, log, die_at, mode)
        return main(argv)
    return run
