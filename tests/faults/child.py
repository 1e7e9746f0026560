"""Programs in a forked child with limits: what they printed, their exit statuses, and how the child ended.

The child inherits a process that has torch loaded, so a case takes a fraction of a second. It gets
a session of its own, and all of its processes are killed with it.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60            # of a case; several times what it takes, since other work shares the machine
CPU_SECONDS = 25        # of its own computing: a hang in a loop
MEGABYTES = 1500        # of memory that a case may ask for beyond what the parent has


@dataclass
class Step:
    """One program of a case. status: None after a traceback, which `error` then holds."""
    program: str
    status: int | None
    out: str = ""
    err: str = ""
    error: str = ""


@dataclass
class Outcome:
    """How a case ended. ended: "" if the child came to its end by itself; otherwise why it did not."""
    steps: list[Step] = field(default_factory=list)
    wrong: str = ""         # what the case's own check of the result says
    ended: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0  # at most, with what the parent already had


def megabytes_of(name: str) -> float:
    """A line of /proc/self/status, such as VmSize."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def limit(megabytes: float) -> None:
    """The limits of the child: address space and computing time; no core file."""
    most = int((megabytes_of("VmSize") + megabytes) * 2 ** 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def redirect(folder: Path, k: int) -> None:
    """Sends what the child prints to the files out.k and err.k."""
    for name, number in (("out", 1), ("err", 2)):
        target = os.open(folder / f"{name}.{k}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(target, number)
        os.close(target)


def call(program: str, function, argv: list[str]) -> Step:
    """Runs a program's main; argparse ends with SystemExit."""
    try:
        status = function(argv)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        return Step(program, None, error=traceback.format_exc())
    return Step(program, 0 if status is None else status)


def inside_child(folder: Path, programs: list, right, megabytes: float) -> None:
    """The child's whole life. programs: (name, main, argv). right: () -> what is wrong with the result."""
    os.setsid()
    limit(megabytes)
    report = {"steps": [], "wrong": ""}
    for k, (name, function, argv) in enumerate(programs):
        redirect(folder, k)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        step = call(name, function, argv)
        sys.stdout.flush()
        sys.stderr.flush()
        report["steps"].append(vars(step))
        # A refusal by the first program is checked against the others; a traceback ends the case.
        if step.status is None:
            break
    if all(step["status"] == 0 for step in report["steps"]) and right is not None:
        try:
            report["wrong"] = right() or ""
        except BaseException:
            report["wrong"] = traceback.format_exc()
    (folder / "report.json").write_text(json.dumps(report))


class Child:
    """A running case. `poll()` -> its Outcome, or None while it runs."""

    def __init__(self, folder: Path, programs: list, right=None, megabytes: float = MEGABYTES,
                 seconds: float = SECONDS):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.programs = folder, programs
        self.began, self.seconds = time.monotonic(), seconds
        self.pid = os.fork()
        if self.pid == 0:
            try:
                inside_child(folder, programs, right, megabytes)
            finally:
                os._exit(0)

    def poll(self) -> Outcome | None:
        """Ends the child if its time is over."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds, ended = time.monotonic() - self.began, ""
        if pid == 0:
            if seconds < self.seconds:
                return None
            ended = f"hangs: not over after {self.seconds:.0f} s"
            os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        elif os.WIFSIGNALED(status):
            ended = f"died of {signal.Signals(os.WTERMSIG(status)).name}"
        return self.outcome(ended, seconds, usage.ru_maxrss / 1024)

    def outcome(self, ended: str, seconds: float, megabytes: float) -> Outcome:
        """What the child left behind."""
        path = self.folder / "report.json"
        report = json.loads(path.read_text()) if path.exists() else {"steps": [], "wrong": ""}
        steps = [Step(**step) for step in report["steps"]]
        for k, step in enumerate(steps):
            step.out, step.err = ((self.folder / f"{name}.{k}").read_text(errors="replace")
                                  for name in ("out", "err"))
        if not path.exists() and not ended:
            ended = "ended without a report"
        return Outcome(steps, report["wrong"], ended, seconds, megabytes)

    def wait(self) -> Outcome:
        """Until it is over."""
        while (outcome := self.poll()) is None:
            time.sleep(0.005)
        return outcome
