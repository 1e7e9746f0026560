"""The process in which a submission runs (see grade.py): loads it and examines its exercises.

Reads its job from standard input. Reports go through a pipe of their own, so that nothing a
submission prints is in their way. Memory is limited, and starting processes is refused.
"""

import gc
import json
import os
import sys
from pathlib import Path

PROCESSES = (
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.exec",
    "os.system",
    "subprocess.Popen",
    "pty.spawn",
)
LARGEST_FILE = 10 * 2**20


class Refused(RuntimeError):
    """A submission that wants to start a process."""


def limit_memory(mebibytes: int) -> None:
    """This much more than the process has now; nothing where the system knows no such limit."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + mebibytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass


def refuse_processes() -> list[str]:
    """From now on starting a process raises Refused; returns the list of what was tried."""
    tried: list[str] = []

    def hook(event: str, _arguments) -> None:
        if event in PROCESSES:
            tried.append(event)
            raise Refused(f"a submission may not start processes ({event})")

    sys.addaudithook(hook)
    return tried


def load(job: dict) -> dict:
    """The names that the submission defines. A notebook's statement that fails is left out; a
    module's is raised."""
    space = {"__name__": "submission", "__file__": job["path"]}
    for source in job["statements"]:
        try:
            exec(compile(source, job["path"], "exec"), space)
        except (Exception, SystemExit):
            if not job["tolerant"]:
                raise
    return space


def state_of(report, tried: list[str]) -> tuple[str, str]:
    """A report -> (state, one line)."""
    if tried:
        return "processes", "it starts processes of its own"
    if (
        "MemoryError" in report.found
        or "not enough memory" in report.found
        or "can't allocate memory" in report.found
    ):
        return "memory", "it takes more memory than it may"
    if report.state == "broken":
        line = f"{report.broken} (hint: {report.hint}); input {report.shown}; {report.found}"
        return "broken", " ".join(line.split())[:600]
    return report.state, {"passed": "right", "package": "it calls the package's own function"}.get(
        report.state, report.state
    )


def main() -> None:
    """Does the job that stands in one line of standard input."""
    job = json.loads(sys.stdin.readline())
    own, pipe, token = (
        os.getpid(),
        os.dup(job["pipe"]),
        job["token"],
    )  # a duplicate is not inherited
    os.close(job["pipe"])

    def say(**message) -> None:
        if os.getpid() == own:
            # A line of its own, whatever a submission wrote into the pipe before.
            os.write(pipe, b"\n" + json.dumps(message | {"token": token}).encode() + b"\n")

    import torch

    from .check import Report, examine

    torch.set_num_threads(1)
    from . import exercises  # noqa: F401 -- before the memory is limited

    sys.stdin = open(os.devnull)
    sys.path.append(str(Path(job["path"]).parent))
    say(event="ready")
    limit_memory(job["memory"])
    tried = refuse_processes()
    try:
        space = load(job)
    except BaseException as error:  # also KeyboardInterrupt, which a submission may raise
        reason = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
        say(
            event="failed",
            state="processes" if tried else "memory" if isinstance(error, MemoryError) else "ended",
            reason=reason,
        )
        os._exit(0)
    for name in job["names"]:
        say(event="start", next=name)
        tried.clear()
        try:
            answer = space.get(name)
            report = (
                examine(answer, name, job["seed"])
                if callable(answer)
                else Report(
                    name,
                    "broken",
                    "it is a function",
                    "def ...",
                    "",
                    "",
                    f"found {type(answer).__name__}",
                )
            )
        except BaseException as error:
            report = Report(
                name,
                "broken",
                "it ends like a function",
                "return a value",
                "",
                "",
                type(error).__name__,
            )
        state, reason = state_of(report, tried)
        report = answer = None
        gc.collect()
        say(event="result", name=name, state=state, reason=reason, next=name)
    say(event="end")
    os._exit(0)


if __name__ == "__main__":
    main()
