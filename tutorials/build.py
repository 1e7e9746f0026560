"""Builds the notebooks: tutorials/src/NN_name.py (py:percent) -> tutorials/NN_name.ipynb, executed.

    python -m tutorials.build           all that are stale
    python -m tutorials.build 04 09     these, stale or not
    python -m tutorials.build --check   builds nothing; exit status 1 and a line for each stale one

A notebook keeps in its metadata the hash of its source and, where it reads the trained model, of
that file. The words {{measured}} in a source become what the run took. What breaks a limit or the
notebook itself is not written: more than 40 cells, 60 processor seconds, 200 KB, an error, anything
on stderr, a figure that is no PNG, a link that leaves the folder.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "src"
CHECKPOINT = FOLDER.parent / "runs" / "tiny" / "crab.pt"
CELLS, SECONDS, BYTES = 40, 60.0, 200_000
MEASURED = "{{measured}}"
NEEDED = ("jupytext", "nbclient", "nbformat", "ipykernel")
# Run behind a notebook's last cell: its kernel's processor seconds, and its peak memory in KiB (on
# macOS in bytes).
ASKS = (
    "import resource as _r; _u = _r.getrusage(_r.RUSAGE_SELF); "
    "print(_u.ru_utime + _u.ru_stime, _u.ru_maxrss)"
)


class BuildError(RuntimeError):
    """One line: which notebook, what was expected, what was found."""


def sources() -> list[Path]:
    """All notebooks' sources, in their order."""
    return sorted(SOURCES.glob("[0-9][0-9]_*.py"))


def target_of(source: Path) -> Path:
    """src/04_attention.py -> 04_attention.ipynb."""
    return FOLDER / f"{source.stem}.ipynb"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wanted_hashes(source: Path) -> dict[str, str | None]:
    """What an up-to-date notebook's metadata hold: its source's hash, and the checkpoint's if it
    reads one."""
    reads = "checkpoint()" in source.read_text()
    return {
        "source": digest(source),
        "checkpoint": digest(CHECKPOINT) if reads and CHECKPOINT.is_file() else None,
    }


def staleness(source: Path) -> str | None:
    """None for a notebook that belongs to its source (and checkpoint, where that is there); else
    why not."""
    target = target_of(source)
    if not target.is_file():
        return f"{target.name}: is not built"
    held = json.loads(target.read_text()).get("metadata", {}).get("crab_mini", {})
    wanted = wanted_hashes(source)
    if held.get("source") != wanted["source"]:
        return f"{target.name}: is older than src/{source.name}"
    if wanted["checkpoint"] and held.get("checkpoint") != wanted["checkpoint"]:
        return f"{target.name}: was made with another trained model"
    return None


def problems(book: dict, seconds: float, size: int) -> list[str]:
    """Every limit that a notebook (as in its file) breaks, in a few words each."""
    found = []
    if len(book["cells"]) > CELLS:
        found.append(f"expected at most {CELLS} cells, found {len(book['cells'])}")
    if seconds > SECONDS:
        found.append(f"expected at most {SECONDS:g} s, found {seconds:.0f} s")
    if size > BYTES:
        found.append(f"expected at most {BYTES // 1000} KB, found {size / 1000:.0f} KB")
    for number, cell in enumerate(book["cells"], 1):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and re.search(
            r"https?://|\]\((?:/|\.\./\.\.|data:)|<img", text
        ):
            found.append(f"cell {number}: expected links inside the project only")
        if cell["cell_type"] == "markdown" and "![" in text:
            found.append(
                f"cell {number}: expected figures that a cell draws, found a picture's link"
            )
        for output in cell.get("outputs", []):
            found += [f"cell {number}: {problem}" for problem in output_problems(output)]
    return found


def output_problems(output: dict) -> list[str]:
    """What is wrong with one output of a cell."""
    if output["output_type"] == "error":
        return [f"raised {output['ename']}: {str(output['evalue']).splitlines()[:1]}"]
    if output["output_type"] == "stream" and output["name"] == "stderr":
        return [f"wrote on stderr: {''.join(output['text']).strip()[:100]!r}"]
    kinds = set(output.get("data", {}))
    if not kinds <= {"text/plain", "image/png"}:
        return [f"expected text and PNG figures, found {', '.join(sorted(kinds))}"]
    return []


def tools():
    """jupytext, nbclient, nbformat; BuildError in one line for what is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BuildError(
            f"building notebooks needs {', '.join(missing)}: pip install -e '.[dev,tutorials]'"
        )
    return tuple(importlib.import_module(name) for name in NEEDED[:3])


def execute(source: Path, book):
    """Runs a notebook's cells; returns its kernel's processor seconds and peak memory in MiB.

    Processor seconds, because a busy machine stretches the clock's and never these.
    """
    _, nbclient, nbformat = tools()
    from jupyter_client.kernelspec import NoSuchKernel

    asks = nbformat.v4.new_code_cell(ASKS)
    book.cells.append(asks)
    client = nbclient.NotebookClient(
        book,
        timeout=10 * SECONDS,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
    )
    try:
        client.execute(
            stderr=subprocess.DEVNULL
        )  # the kernel's own remarks; those of cells are outputs
    except NoSuchKernel:
        raise BuildError(
            f"{source.name}: there is no Python kernel here: pip install ipykernel"
        ) from None
    except nbclient.exceptions.CellTimeoutError:
        raise BuildError(f"{source.name}: a cell takes longer than {10 * SECONDS:g} s") from None
    except nbclient.exceptions.DeadKernelError:
        raise BuildError(f"{source.name}: the kernel died (too little memory?)") from None
    book.cells.remove(asks)
    said = "".join(output.get("text", "") for output in asks.outputs).split()
    if len(said) != 2:
        return 0.0, 0  # the notebook ended early: its error is reported
    return float(said[0]), round(float(said[1]) / (2**20 if sys.platform == "darwin" else 2**10))


def build(source: Path) -> str:
    """Builds one notebook and writes it if it keeps the limits; returns a line about it."""
    jupytext, _, nbformat = tools()
    book = jupytext.read(source)
    seconds, peak = execute(source, book)
    for number, cell in enumerate(book.cells):
        cell.id = f"{source.stem[:2]}-{number:02}"  # the same at every build
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(
                MEASURED, f"{max(round(seconds), 1)} seconds of one processor core and {peak} MiB"
            )
    book.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "crab_mini": wanted_hashes(source) | {"seconds": round(seconds, 1), "peak_mib": peak},
        }
    )
    text = nbformat.writes(book)
    broken = problems(json.loads(text), seconds, len(text.encode()))
    if broken:
        raise BuildError(f"{source.name}: {'; '.join(broken[:5])}")
    target_of(source).write_text(text + "\n")
    return (
        f"{target_of(source).name}: {len(book.cells)} cells, {seconds:.0f} s, {peak} MiB, "
        f"{len(text.encode()) / 1000:.0f} KB"
    )


def main(argv: list[str] | None = None) -> int:
    """Reads the command line; exit status 1 and one line for each notebook that could not be built
    or is stale."""
    parser = argparse.ArgumentParser(
        prog="python -m tutorials.build", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "numbers", nargs="*", metavar="NN", help="which notebooks (default: all that are stale)"
    )
    parser.add_argument(
        "--check", action="store_true", help="build nothing, only say which are stale"
    )
    args = parser.parse_args(argv)
    known = {source.stem[:2]: source for source in sources()}
    for number in args.numbers:
        if number not in known:
            print(
                f"error: there is no notebook {number}; there are {', '.join(known)}",
                file=sys.stderr,
            )
            return 2
    chosen = [known[n] for n in args.numbers] or [
        s for s in known.values() if args.check or staleness(s)
    ]
    status = 0
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a debugger's remark on stderr
    for source in chosen:
        try:
            line = staleness(source) if args.check else build(source)
            status |= bool(args.check and line)
            if line:
                print(line)
        except (BuildError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
