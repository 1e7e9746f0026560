"""Who may import whom, read from the source: the model side and the data side meet only where they are meant to."""

import ast
import sys
import tomllib
from pathlib import Path

HOME = Path(__file__).parent.parent
FILES = {".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): path
         for path in (HOME / "crab_mini").rglob("*.py")}
ENCODERS = ("llm", "audio_encoder", "vision_encoder", "qformer", "mask_decoder")
MODEL, DATA = (*ENCODERS, "lora", "fused_lora", "model"), ("av_uie", "media", "world")
LOG_MEL = ("crab_mini.audio_encoder", "fbank")     # a function of the waveform alone, which anybody may call


def imported(name: str, source: str) -> set[tuple[str, str]]:
    """(module, what of it) of every import in a file, wherever in the file it stands; relative ones spelled out."""
    folder = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = folder[:len(folder) - node.level + 1] if node.level else []
            base = ".".join(above + [node.module] * bool(node.module))
            found |= {(f"{base}.{a.name}", "") if f"{base}.{a.name}" in FILES else (base, a.name) for a in node.names}
    return found


IMPORTS = {name: imported(name, path.read_text()) for name, path in FILES.items()}


def part_of(module: str, parts) -> bool:
    return any(module == f"crab_mini.{part}" or module.startswith(f"crab_mini.{part}.") for part in parts)


def reached(parts) -> set[str]:
    """Our modules that these parts import, directly or through others; the log-mel is not followed."""
    found = {name for name in FILES if part_of(name, parts)}
    while True:
        more = {module for name in found for module, what in IMPORTS[name]
                if module in FILES and (module, what) != LOG_MEL}
        if more <= found:
            return found
        found |= more


def test_the_model_side_and_the_data_side_know_nothing_of_each_other():
    assert not [m for m in reached(MODEL) if part_of(m, (*DATA, "stages"))]
    assert not [m for m in reached(DATA) if part_of(m, (*MODEL, "stages"))]


def test_config_and_the_fused_operation_import_nothing_of_ours():
    for part in ("config", "fused_lora"):
        assert all(part_of(m, (part,)) for m in reached((part,))), part


def test_the_models_parts_never_import_each_other():
    for part in ENCODERS:
        assert not [m for m in reached((part,)) if part_of(m, set(ENCODERS) - {part})], part


def test_nothing_imports_the_programs_the_tests_or_what_is_not_declared():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    allowed = {text.split(">")[0].replace("pillow", "PIL") for text in wanted} | {"crab_mini", *sys.stdlib_module_names}
    for name, pairs in IMPORTS.items():
        assert {module.split(".")[0] for module, _ in pairs} <= allowed, name
