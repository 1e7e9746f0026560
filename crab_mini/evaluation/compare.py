"""Several runs side by side, as one table.

    python -m crab_mini.evaluation.compare "three seeds=runs/a,runs/b,runs/c" "one head=runs/d"

Each argument is one column: a name and the runs that it is made of. A run is a folder of train.py
--out, or a file of eval.py --json. A column of one run shows its scores. A column of several runs
shows their mean ± sample standard deviation. Baselines and n are those of the first run. A cell is
empty where none of the column's runs was scored on the task.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from .tables import markdown

FILE = "results.json"


def read(path: Path) -> dict[tuple[str, str], dict]:
    """{(task, score's name): the score} of one run; ValueError names the file if it holds none."""
    path = path / FILE if path.is_dir() else path
    try:
        results = json.loads(path.read_text())["results"]
        return {(task, score["name"]): score
                for task, result in results.items() for score in result["scores"]}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path}: expected the scores that train.py or eval.py --json "
                         "wrote") from None


def cell(values: list[float | None]) -> str:
    """Mean ± sample standard deviation; of one value itself, of none an empty text."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{spread}"


def compare(columns: dict[str, list[dict]]) -> str:
    """A Markdown table with a line for each score of the first run.

    columns: {name: what `read` returned, one for each run}.
    """
    first = next(iter(columns.values()))[0]
    rows = [["task", "score", *columns, "chance", "baseline", "n"]]
    for key, score in first.items():
        shown = [cell([run[key]["value"] for run in runs if key in run])
                 for runs in columns.values()]
        rows.append([*key, *shown, cell([score["chance"]]), cell([score["baseline"]]), score["n"]])
    return markdown(rows)


def main(words: list[str] | None = None) -> int:
    """Prints the table. Returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("columns", nargs="+", metavar="NAME=RUN[,RUN...]")
    try:
        # Each argument becomes a column: its name, and the scores of its runs.
        named = {}
        for word in parser.parse_args(words).columns:
            name, equals, paths = word.partition("=")
            if not equals or name in named:
                raise ValueError(f"'{word}': expected columns of different names such as "
                                 "'three seeds=runs/a,runs/b'")
            named[name] = [read(Path(path)) for path in paths.split(",")]
        print(compare(named))
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
