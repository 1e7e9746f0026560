"""What is handed in, as statements to run: a module whole, of a notebook the imports, definitions
and plain constants."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path

KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
LARGEST = 20 * 2**20  # bytes of a file that is read at all


class SubmissionError(ValueError):
    """One line: which file, what is wrong with it."""


@dataclass
class Submission:
    """statements: sources that run one after the other. names: what they define on the top
    level."""

    path: Path
    statements: list[str]
    names: list[str]
    notes: list[str]  # cells that were left out, and why
    tolerant: bool  # a statement that fails is left out, too


def read(path: Path) -> Submission:
    """A notebook (.ipynb) or a module; SubmissionError for what is neither."""
    try:
        if path.stat().st_size > LARGEST:
            raise SubmissionError(
                f"{path}: expected a notebook or a module, found {path.stat().st_size} bytes"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SubmissionError(
            f"{path}: not a readable text file ({type(error).__name__})"
        ) from None
    return notebook(path, text) if path.suffix == ".ipynb" else module(path, text)


def module(path: Path, text: str) -> Submission:
    """A .py file: one statement, all of it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SubmissionError(
            f"{path}: not a Python file ({type(error).__name__}, line "
            f"{getattr(error, 'lineno', '?')})"
        ) from None
    return Submission(
        path, [text], [name for node in tree.body for name in names_of(node)], [], False
    )


def notebook(path: Path, text: str) -> Submission:
    """A .ipynb file: the kept statements of its code cells, without magics."""
    try:
        cells = json.loads(text)["cells"]
        codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SubmissionError(f"{path}: not a notebook (no JSON with cells)") from None
    found = Submission(path, [], [], [], True)
    for number, code in enumerate(codes, 1):
        lines = ["" if line.lstrip()[:1] in ("%", "!", "?") else line for line in code.splitlines()]
        try:
            tree = ast.parse("\n".join(lines))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            found.notes.append(f"code cell {number} is left out: {type(error).__name__}")
            continue
        for node in tree.body:
            if isinstance(node, KEPT) or is_constant(node):
                found.statements.append(ast.unparse(node))
                found.names += names_of(node)
    return found


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def is_constant(node: ast.stmt) -> bool:
    """Whether a statement gives a name to something that costs nothing: no call in it, or only
    inside a lambda."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
        return False
    return isinstance(node.value, ast.Lambda) or not any(
        isinstance(n, (ast.Call, ast.Await)) for n in ast.walk(node.value)
    )
