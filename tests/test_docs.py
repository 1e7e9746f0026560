"""What the four pages say is so: paths, flags, commands and names are looked up.

Nothing is skipped: a fenced block names its language, and whatever stands in backticks is a command, a flag, a path or
words of the source. Only blocks of `text` are not held to anything.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import re
import runpy
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from crab_mini.av_uie.integrity import FORMATS
from crab_mini.config import Config, override
from crab_mini.tokenizer import TAGS
from crab_mini.world.write import write

HOME = Path(__file__).parent.parent
PAGES = {name: (HOME / name).read_text() for name in ("README.md", "data/README.md", "CONTRIBUTING.md", "SECURITY.md")}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())
SOURCE = "\n".join(path.read_text() for folder in ("crab_mini", "tests") for path in (HOME / folder).rglob("*.py")
                   if path != Path(__file__)) + (HOME / "pyproject.toml").read_text()
OUTSIDE = ("/usr/share/tuxpaint/stamps", "tuxpaint-stamps-default")         # what Debian calls them
PROGRAMS = ("python", "pip", "pytest", "torchrun", "bash", "ruff", "jupyter")
MADE = ("runs/", "data/")                                                   # what the commands leave behind


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of all fenced blocks in a language."""
    return [(page, text) for page, whole in PAGES.items() for name, text in FENCE.findall(whole) if name == language]


def spans() -> list[tuple[str, str]]:
    """(page, text) of everything in backticks outside the fenced blocks."""
    return [(page, text) for page, whole in PAGES.items() for text in re.findall(r"`([^`\n]+)`", FENCE.sub("", whole))]


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """(page, words) of every command: each line of a bash block, each span that begins with a program."""
    lines = [(page, line) for page, text in blocks("bash") for line in text.replace("\\\n", " ").splitlines()]
    lines += [(page, text) for page, text in spans() if text.split()[0] in PROGRAMS and " " in text]
    found = []
    for page, line in lines:
        for part in " ".join(shlex.quote(w) if w != "&&" else w for w in shlex.split(line, comments=True)).split("&&"):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):          # CRAB_KERNEL=cpp python ...
                assert words.pop(0).partition("=")[0] in SOURCE, line
            if words:
                found.append((page, tuple(words)))
    return found


@cache
def said(words: tuple[str, ...]) -> str:
    """What `python WORDS --help` prints, run here; it ends with status 0, so the words before --help were accepted."""
    before, sys.argv = sys.argv, [*words[words[0] == "-m":], "--help"]
    out, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(HOME / words[0]), run_name="__main__")
    finally:
        sys.argv = before
    assert not ended.value.code, f"{' '.join(words)}: {errors.getvalue()}"
    return out.getvalue()


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[\w.-]*\w", text))


def test_there_are_pages_to_read():
    assert all(len(text) > 3000 for text in PAGES.values()) and len(commands()) > 15 and len(spans()) > 100


def test_every_block_names_its_language():
    for page, text in PAGES.items():
        assert {name for name, _ in FENCE.findall(text)} <= {"bash", "python", "json", "text"}, page
        assert text.count("```") == 2 * len(FENCE.findall(text)), page
        assert not re.search(r"^(    |\t)\S", FENCE.sub("", text), re.M), f"{page}: an indented block"


def test_python_and_json_blocks_parse():
    for page, text in blocks("python"):
        compile(text, page, "exec")
    for _, text in blocks("json"):
        json.loads(text)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("words", sorted({words for _, words in commands()}), ids=" ".join)
def test_a_command_is_accepted(words):
    program, rest = words[0], words[1:]
    if program == "torchrun":
        assert rest[0] == "--nproc_per_node" and rest[1].isdigit()
        program, rest = "python", rest[2:]
    if program == "python":
        if rest[0] == "-m":
            assert importlib.util.find_spec(rest[1]), rest[1]
        elif not (HOME / rest[0]).exists():
            assert any(rest[0] in text for _, text in blocks("python")), rest[0]      # the reader's own file
            rest = ("train.py", *rest[1:])
        fields = [k for k, word in enumerate(rest) if word.startswith("--") and "." in word]
        for k in fields:
            override(Config(), rest[k][2:], rest[k + 1])
        rest = tuple(word for k, word in enumerate(rest) if not {k, k - 1} & set(fields))
        assert not options(" ".join(rest)) - options(said(rest))
    elif program == "pip":
        assert rest[0] == "install"
        if rest[1] == "-r":
            assert (HOME / rest[2]).is_file()
        else:
            extras = re.fullmatch(r"\.\[([\w,]+)\]", rest[2])[1].split(",")
            assert rest[1] == "-e" and set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    elif program == "pytest":
        markers = {marker.split(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
        for word, value in itertools.pairwise((*rest, "")):
            assert word in ("-m", "-s") or word == value or (HOME / word).exists() or rest[rest.index(word) - 1] == "-m"
            assert word != "-m" or set(re.findall(r"\w+", value)) - {"and", "or", "not"} <= markers
    elif program == "ruff":
        assert rest == ("check", ".") and "ruff" in PROJECT["tool"]
    elif program == "jupyter":
        assert rest[0] == "lab" and (HOME / rest[1]).is_dir()
    else:
        assert program == "bash" and (HOME / rest[0]).is_file()


def test_every_flag_is_one_of_a_program_s():
    known = options("".join(map(said, (("train.py",), ("eval.py",), ("-m", "crab_mini.world"),
                                       ("-m", "crab_mini.av_uie", "check"), ("-m", "crab_mini.av_uie", "show"),
                                       ("-m", "crab_mini.fused_lora", "bench")))))
    named = options(" ".join(text for _, text in spans() if text.startswith("--")))
    assert len(named) > 5
    for flag in named - known:
        override(Config(), flag[2:], "1")


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> Path:
    """A few clips, for the layout."""
    folder = tmp_path_factory.mktemp("docs") / "mini"
    write(folder, 9, 12, image=32, workers=1)
    return folder


def patterns(text: str) -> list[str]:
    """`{train,test}.json`, `{vid}.png` -> globs."""
    choice = re.search(r"\{(\w+(?:,\w+)+)\}", text)
    if choice:
        return [p for one in choice[1].split(",") for p in patterns(text.replace(choice[0], one))]
    return [re.sub(r"\{\w+\}", "*", text)]


def is_there(path: str, miniature: Path) -> bool:
    """In the project, made by its commands, or in a data set; a media file may have any format that is read."""
    if path.startswith(MADE) or list(HOME.glob(path)) or list(miniature.glob(path)):
        return True
    folder, name = Path(path).parent, Path(path).name
    real = re.fullmatch(r"\*\.\w+", name) and folder.name in ("video", "audio") and any(miniature.glob(str(folder)))
    return Path(path).suffix in FORMATS and bool(real or "/" not in path)


def test_every_path_in_backticks_exists(miniature):
    seen = 0
    for page, text in spans():
        if " " in text or text in OUTSIDE or text.startswith(("-", "<", "(")):
            continue
        if "/" in text or Path(text).suffix in {".py", ".md", ".toml", ".txt", ".json", ".pt", ".svg", *FORMATS}:
            seen += 1
            assert all(is_there(path, miniature) for path in patterns(text)), f"{page}: {text}"
    assert seen > 30


def test_every_link_leads_somewhere():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
            if not target.startswith("https://"):
                path, _, anchor = target.partition("#")
                assert ((HOME / page).parent / path).exists(), f"{page}: {target}"
                headings = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                            for line in PAGES.get(path or page, "").splitlines() if line.startswith("#")]
                assert not anchor or anchor in headings, f"{page}: {target}"


def test_everything_else_in_backticks_is_a_word_of_the_source():
    known = set(re.findall(r"[A-Za-z_]\w*", f"{SOURCE} {TAGS}"))
    for page, text in spans():
        if "/" in text or text.startswith("-") or text in OUTSIDE or text.split()[0] in PROGRAMS:
            continue
        assert set(re.findall(r"[A-Za-z_]\w*", text)) <= known, f"{page}: {text}"
