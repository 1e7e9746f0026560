"""The law of the folders: who may import whom, read from the source. CONTRIBUTING.md and crab_mini/__init__.py tell it."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PACKAGE = HOME / "crab_mini"
# Folder or file of crab_mini -> what of crab_mini its files may import. Its own files it may always import.
BASIC = {"config", "errors"}
LAW = {
    "config": set(), "errors": set(), "tokenizer": set(), "metrics": set(), "fused_lora": set(), "batch": set(),
    "config_check": {"config"},
    "files": {"errors"},
    "tasks": {"metrics", "errors"},
    "av_uie": {"tasks", "tokenizer", "files"} | BASIC,
    "av_uie/__main__": {"av_uie", "world", "tasks", "files"} | BASIC,      # a program: it lies above the world
    "world": {"av_uie", "tasks", "metrics", "files"} | BASIC,
    "model": {"fused_lora", "batch"} | BASIC,
    "features": {"av_uie", "tasks", "model", "batch", "tokenizer", "files"} | BASIC,
    "stages": {"features", "world", "model", "av_uie", "tasks", "batch", "tokenizer"} | BASIC,
    "training": {"batch", "files"} | BASIC,
    "evaluation": {"features", "tasks", "model", "av_uie", "batch", "tokenizer", "files"} | BASIC,
    "pretrained": {"model", "tokenizer"} | BASIC,
    "bundle": {"config_check", "model", "tokenizer", "training"} | BASIC,
    "options": {"config_check", "tasks", "tokenizer", "world", "fused_lora"} | BASIC,
    "api": {"bundle", "evaluation", "features", "model", "tasks", "av_uie", "batch", "tokenizer"} | BASIC,
    "__init__": {"api"},
}


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in the file it stands; relative imports spelled out."""
    parts = path.relative_to(HOME).with_suffix("").parts
    package = parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(dotted: str) -> str | None:
    """crab_mini.model.llm.LLM -> model; None for what is not ours."""
    parts = dotted.split(".")
    if parts[0] != "crab_mini":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LAW else "__init__"


def own_part(path: Path) -> str:
    """The folder of a file, or the file itself where it lies flat in the package."""
    inside = path.relative_to(PACKAGE)
    if str(inside.with_suffix("")) in LAW:
        return str(inside.with_suffix(""))
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def test_the_law_names_every_folder_and_file_of_the_package():
    assert {own_part(path) for path in FILES} == set(LAW)


@pytest.mark.parametrize("part", LAW)
def test_a_folder_imports_only_what_the_law_allows(part):
    for path in FILES:
        if own_part(path) == part:
            used = {part_of(name) for name in imported(path)} - {None, part}
            assert used <= LAW[part], f"{path.relative_to(HOME)} imports {sorted(used - LAW[part])}"


def test_the_law_itself_has_no_circle():
    done: set[str] = set()
    while len(done) < len(LAW):
        ready = {part for part, allowed in LAW.items() if allowed <= done} - done
        assert ready, f"each of these needs another one first: {sorted(set(LAW) - done)}"
        done |= ready


def test_the_parts_of_the_model_meet_only_in_crab_and_recorder():
    parts = {path.stem for path in (PACKAGE / "model").glob("*.py")} - {"crab", "recorder", "__init__"}
    shared = {"attention", "kv_cache", "added_tokens"}      # what the parts are made of
    for name in parts - shared:
        used = {dotted.split(".")[2] for dotted in imported(PACKAGE / f"model/{name}.py")
                if dotted.startswith("crab_mini.model.")}
        assert used <= shared, f"model/{name}.py imports {sorted(used - shared)}"


def test_nothing_imports_the_programs_the_tests_or_what_is_not_declared():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    allowed = {text.split(">")[0].replace("pillow", "PIL") for text in wanted} | {"crab_mini", *sys.stdlib_module_names}
    for path in [*FILES, HOME / "train.py", HOME / "eval.py"]:
        assert {name.split(".")[0] for name in imported(path)} <= allowed, path.name
