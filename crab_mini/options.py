"""The command line of train.py: its options, and every field of the configuration as `--section.field value`.

Whatever cannot be meant is one `ConfigError` line with the nearest names: an option or field that does not exist, a
value of the wrong kind, numbers that do not fit together. Nothing is abbreviated, accepted and ignored, or corrected.
"""

import argparse
import dataclasses
import difflib
import textwrap
from pathlib import Path

from .config import Config, ConfigError, override, preset
from .tasks import TASKS
from .tokenizer import MASKS
from .world.scene import MAX_SEED
from .world.script import CELLS, VOICES

STAGES = ("text", "see", "hear", "speak", "segment", "align", "instruct")
MAY_BE_ZERO = ("seed", "muon_lr", "warmup", "weight_decay", "dropout")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str):
        """Instead of the usage and an exit."""
        raise ConfigError(message.replace("argument ", "", 1))


def fields(cfg: Config) -> dict[str, object]:
    """{"lora.heads": 3, ...}: every field of a configuration."""
    flat = {"seed": cfg.seed}
    for section in dataclasses.fields(cfg):
        part = getattr(cfg, section.name)
        if dataclasses.is_dataclass(part):
            flat |= {f"{section.name}.{field.name}": getattr(part, field.name) for field in dataclasses.fields(part)}
    return flat


def _shown(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else f"{value:g}"


def _listing() -> str:
    """All fields with their values in the default preset, a paragraph a section."""
    sections: dict[str, list[str]] = {}
    for name, value in fields(preset("tiny")).items():
        sections.setdefault(name.partition(".")[0], []).append(f"--{name}={_shown(value)}")
    return "\n".join(["Fields of the configuration are options too (config.py explains them); with tiny's values:", *(
        textwrap.fill("  ".join(names), 118, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
        for names in sections.values())])


def parser(description: str) -> Parser:
    """The options."""
    made = Parser(prog="train.py", description=description, allow_abbrev=False, epilog=_listing(),
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--task", default="all", help="all, or names with commas: " + ",".join(TASKS))
    made.add_argument("--preset", default="tiny", help="nano, tiny, small or paper (with published weights)")
    made.add_argument("--data", type=Path, help="a folder in the AV-UIE layout for the instruct stage; one that "
                      "crab_mini.world made (from a bank, say) serves all stages")
    made.add_argument("--skip-bad", action="store_true", help="leave out what is broken in --data, and list it")
    made.add_argument("--cache-features", type=Path, metavar="DIR", help="keep the encoders' features for later runs")
    made.add_argument("--vision-weights", type=Path, metavar="FILE", help="published CLIP-ViT instead of the see stage")
    made.add_argument("--audio-weights", type=Path, metavar="FILE", help="published BEATs instead of the hear stage")
    made.add_argument("--llm-weights", type=Path, metavar="PATH",
                      help="published LLaMA (file or folder) instead of the text, speak and segment stages")
    made.add_argument("--tokenizer", type=Path, metavar="FILE", help="the sentencepiece model of --llm-weights")
    made.add_argument("--out", type=Path, help="folder of the run (default runs/PRESET)")
    made.add_argument("--stages", type=Path, help="folder with the earlier stages of another run to share")
    made.add_argument("--resume", action="store_true", help="go on with the stage that was stopped")
    made.add_argument("--reasoning", choices=("on", "off"), default="on", help="off: learn the bare answers")
    made.add_argument("--before", action="store_true", help="also score the model before the instruct stage")
    made.add_argument("--max-minutes", type=float, help="wall-clock budget of all stages together")
    made.add_argument("--max-steps", type=int, help="steps of each stage at most")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                      help="auto: bf16 on a GPU and on CPUs that multiply it in hardware")
    made.add_argument("--kernel", choices=("auto", "torch", "cpp", "cuda"), default="auto", help="of the LoRA")
    return made


def arguments(description: str, argv: list[str] | None = None) -> tuple[argparse.Namespace, Config]:
    """The command line -> (options, configuration). options.overrides: the fields that it names, with their texts."""
    made = parser(description)
    options, rest = made.parse_known_args(argv)
    cfg, options.overrides = preset(options.preset), _pairs(rest, made)
    for name, text in options.overrides.items():
        cfg = override(cfg, name, text)
    for name in ("max_minutes", "max_steps"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: expected a number above 0, found {value:g}")
    if bool(options.llm_weights) != bool(options.tokenizer):
        raise ConfigError("--llm-weights needs --tokenizer FILE, its sentencepiece model, and the other way round")
    if options.skip_bad and not options.data:
        raise ConfigError("--skip-bad needs --data DIR: the miniature that train.py makes has no bad samples")
    if options.max_steps:
        for name in STAGES:
            stage = getattr(cfg, name)
            stage = dataclasses.replace(stage, steps=min(stage.steps, options.max_steps))
            cfg = dataclasses.replace(cfg, **{name: stage})
    return options, cfg


def _pairs(rest: list[str], made: Parser) -> dict[str, str]:
    """What argparse does not know -> {field: text}; ConfigError where an option is meant that does not exist."""
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2 or any(not word.startswith("--") for word in words[::2]):
        raise ConfigError(f"{' '.join(rest)}: expected pairs such as --lora.heads 1")
    names = {*fields(Config()), *(text[2:] for action in made._actions for text in action.option_strings)}
    for name in words[::2]:
        if name[2:] not in names:
            close = difflib.get_close_matches(name[2:], sorted(names), n=3, cutoff=0.5)
            raise ConfigError(f"{name}: no such option or field; " + (
                f"nearest: {', '.join(f'--{c}' for c in close)}" if close else "train.py --help lists them"))
    return {name[2:]: text for name, text in zip(words[::2], words[1::2])}


def check(cfg: Config, scripted: bool) -> None:
    """ConfigError for numbers that cannot be or do not fit together. scripted: the LLM learns from scripts."""
    for name, value in fields(cfg).items():
        low = 0 if name.rpartition(".")[2] in MAY_BE_ZERO or name.startswith("vision.") and "layer" in name else 1e-12
        for number in value if isinstance(value, tuple) else [value] * (value is not None):
            if not low <= number < float("inf"):
                raise ConfigError(f"--{name}: expected a number {'of at least' if not low else 'above'} 0, "
                                  f"found {number:g}")
    for name, seed, most in (("seed", cfg.seed, 2 ** 31 - 1), ("world.seed", cfg.world.seed, MAX_SEED)):
        if seed > most:
            raise ConfigError(f"--{name}: expected at most {most}, found {seed}")
    vision, audio, mask = cfg.vision, cfg.audio, cfg.mask
    multiples = {"vision.image": ("vision.patch", vision.image, vision.patch)}
    multiples |= {f"{name}.width": (f"{name}.heads", getattr(cfg, name).width, getattr(cfg, name).heads)
                  for name in ("vision", "audio", "visual_qformer", "audio_qformer", "mask")}
    for name, (other, value, divisor) in multiples.items():
        if value % divisor:
            raise ConfigError(f"--{name}: expected a multiple of {other} {divisor}, found {value}")
    for name, value in (("vision.width", vision.width), ("audio.width", audio.width)):
        if value % 4:
            raise ConfigError(f"--{name}: expected a multiple of 4, sine and cosine of two axes, found {value}")
    for name in ("mask_layers", "llm_layer"):
        value = getattr(vision, name)
        if max(value if isinstance(value, tuple) else (value,)) > vision.layers:
            raise ConfigError(f"--vision.{name}: expected at most {vision.layers}, the number of layers, "
                              f"found {_shown(value)}")
    if mask.scales != len(vision.mask_layers) or mask.scales * mask.tokens != len(MASKS):
        raise ConfigError(f"--mask.scales, --mask.tokens: expected {len(vision.mask_layers)} (one for each of "
                          f"vision.mask_layers) times {len(MASKS) // len(vision.mask_layers)}, which is the number of "
                          f"mask tokens, found {mask.scales} times {mask.tokens}")
    if audio.max_distance <= audio.buckets // 4:
        raise ConfigError("--audio.max_distance: expected more than a quarter of the buckets, "
                          f"found {audio.max_distance}")
    for name, slots in (("visual_qformer", CELLS), ("audio_qformer", VOICES)):
        queries = getattr(cfg, name).queries
        if scripted and queries != slots:
            raise ConfigError(f"--{name}.queries: expected {slots}, the slots of the scripts that the LLM learns from "
                              f"(any number with --llm-weights), found {queries}")
