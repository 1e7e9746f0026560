"""Grades a notebook or a module: exercise, passed, reason, points.

    python -m tutorials.grade answers.py                  the exercises that the file answers
    python -m tutorials.grade 04_attention.ipynb --json   all of notebook 04, for a course's books
    python -m tutorials.grade answers.py --seed 7         on inputs that only the teacher knows

The submission runs in a process of its own with limits of time and memory: one that hangs, exits,
prints garbage, starts processes or eats memory gets a line that says so, and the other exercises
are graded all the same. An answer that calls the package's own function is flagged and gets no
points.

THIS IS NO SANDBOX. The submission runs with your rights: it can read and delete your files and use
the network, and who sets out to deceive the grader from inside its own process can. Grade strangers
in a container.
"""

import argparse
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from . import submission
from .submission import Submission, SubmissionError

HOME = Path(__file__).parent.parent
START = 120.0  # seconds that importing torch may take on a busy machine


@dataclass
class Grade:
    """One line of the result. state: passed, broken, not done yet, missing, package, time, memory,
    processes, ended."""

    exercise: str
    notebook: str
    passed: bool
    state: str
    reason: str
    points: int
    of: int


class Worker:
    """The process that runs a submission, and its messages. In a session of its own, so that
    nothing of it survives."""

    def __init__(self, job: dict):
        read_end, write_end = os.pipe()
        self.token, self.buffer, self.pipe = secrets.token_hex(16), b"", read_end
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tutorials.worker"],
            cwd=self.folder.name,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write_end],
            start_new_session=True,
        )
        os.close(write_end)
        try:
            self.process.stdin.write(
                json.dumps(job | {"token": self.token, "pipe": write_end}).encode() + b"\n"
            )
            self.process.stdin.close()
        except OSError:
            pass  # it is gone already: the first message will be missing
        self.selector = selectors.DefaultSelector()
        self.selector.register(read_end, selectors.EVENT_READ)

    def message(self, seconds: float) -> dict | None:
        """The next message, {} when the time is over, None when the process has ended."""
        end = time.monotonic() + seconds
        while True:
            while b"\n" in self.buffer:
                line, _, self.buffer = self.buffer.partition(b"\n")
                try:
                    found = json.loads(line)
                except ValueError:
                    continue  # somebody else wrote into the pipe
                if isinstance(found, dict) and found.pop("token", None) == self.token:
                    return found
            left = end - time.monotonic()
            if left <= 0 or not self.selector.select(left):
                return {}
            part = os.read(self.pipe, 65536)
            if not part:
                return None
            self.buffer = (self.buffer + part)[-(1 << 20) :]

    def how_it_ended(self) -> str:
        """`ended the process with status 3` or `was ended by SIGSEGV`."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed the grader's pipe"
        return (
            f"was ended by {signal.Signals(-status).name}"
            if status < 0
            else f"ended the process with status {status}"
        )

    def close(self) -> None:
        """Ends the process and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.selector.close()
        os.close(self.pipe)
        self.folder.cleanup()


def exercises_of(handed_in: Submission, notebook: str | None) -> list[tuple[str, str, int]]:
    """(name, notebook, points) of what is to be graded: all of a notebook, or what a module
    defines."""
    from .exercises import EXERCISES

    return [
        (e.name, e.notebook, e.points)
        for e in EXERCISES.values()
        if (e.notebook == notebook if notebook else e.name in handed_in.names)
    ]


def grade(
    handed_in: Submission,
    wanted: list[tuple[str, str, int]],
    seed: int,
    seconds: float,
    memory: int,
) -> list[Grade]:
    """One grade for each wanted exercise. seconds: for loading the file, and for each exercise;
    memory: MiB."""
    states: dict[str, tuple[str, str]] = {
        name: ("missing", "the file does not define it")
        for name, _, _ in wanted
        if name not in handed_in.names
    }
    names = [name for name, _, _ in wanted if name not in states]

    # A worker grades one exercise after the other. Where it is lost, a new one goes on behind
    # that exercise.
    while left := [name for name in names if name not in states]:
        worker = Worker(
            dict(
                statements=handed_in.statements,
                tolerant=handed_in.tolerant,
                path=str(handed_in.path.resolve()),
                names=left,
                seed=seed,
                memory=memory,
            )
        )
        try:
            states |= listen(worker, left, seconds)
        finally:
            worker.close()
    return [
        Grade(
            name,
            notebook,
            states[name][0] == "passed",
            *states[name],
            points * (states[name][0] == "passed"),
            points,
        )
        for name, notebook, points in wanted
    ]


def listen(worker: Worker, names: list[str], seconds: float) -> dict[str, tuple[str, str]]:
    """The states of as many of `names` as this worker decides: at least one."""
    states: dict[str, tuple[str, str]] = {}
    said = worker.message(START)
    if not said:
        return dict.fromkeys(names, ("ended", "the grader's own process does not start"))
    doing = None  # None: the file is being loaded
    while True:
        said = worker.message(seconds)
        if said:
            if said["event"] == "failed":
                return dict.fromkeys(
                    names, (said["state"], f"the file does not load: {said['reason']}")
                )
            if said["event"] == "result":
                states[said["name"]] = said["state"], said["reason"]
            if said["event"] == "end":
                return {name: ("ended", "its result was lost") for name in names} | states
            doing = said.get("next")
            continue
        lost = (
            ("time", f"takes longer than {seconds:g} s")
            if said == {}
            else ("ended", worker.how_it_ended())
        )
        if doing is None:
            return states | {
                name: (lost[0], f"the file does not load: it {lost[1]}")
                for name in names
                if name not in states
            }
        return states | {doing: lost}


def notebook_of(path: Path) -> str | None:
    """`04` of 04_attention.ipynb."""
    found = re.match(r"(\d\d)_", path.name)
    return found[1] if found and path.suffix == ".ipynb" else None


def table(grades: list[Grade], seed: int, notes: list[str]) -> str:
    """The result for people."""
    width = max([len(g.exercise) for g in grades] + [8])
    lines = [f"{g.exercise:{width}}  {g.points}/{g.of}  {g.reason}" for g in grades] + notes
    return "\n".join(
        [
            *lines,
            f"{'total':{width}}  {sum(g.points for g in grades)}/{sum(g.of for g in grades)}"
            f"  seed {seed}",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Reads the command line; exit status 2 and one line for a file that is nothing to grade."""
    parser = argparse.ArgumentParser(
        prog="python -m tutorials.grade",
        description=__doc__.split("\n\n")[0],
        epilog="This is no sandbox: the submission runs with your rights.",
    )
    parser.add_argument(
        "file", type=Path, help="a notebook (.ipynb) or a module (.py) with the functions"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; 0 is what check() uses")
    parser.add_argument(
        "--notebook", metavar="NN", help="grade all exercises of this notebook, missing ones too"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for loading the file, and for each exercise"
    )
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the submission may take")
    args = parser.parse_args(argv)
    try:
        if os.name != "posix":
            raise SubmissionError("grading needs Linux or macOS (on Windows: WSL)")
        handed_in = submission.read(args.file)
        wanted = exercises_of(handed_in, args.notebook or notebook_of(args.file))
        if not wanted:
            raise SubmissionError(
                f"{args.file}: found no exercise's function in it (is --notebook NN missing?)"
            )
    except SubmissionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    grades = grade(handed_in, wanted, args.seed, args.seconds, args.memory)
    if args.json:
        print(
            json.dumps(
                dict(
                    file=str(args.file),
                    seed=args.seed,
                    points=sum(g.points for g in grades),
                    of=sum(g.of for g in grades),
                    notes=handed_in.notes,
                    exercises=[asdict(g) for g in grades],
                ),
                indent=1,
            )
        )
    else:
        print(table(grades, args.seed, handed_in.notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
