"""Whether the numbers of a configuration can be, and whether they fit together.

One check for all: the command line (options.py) and the file of a trained model (bundle.py).
    check(cfg)      ConfigError such as `vision.image: expected a multiple of vision.patch 8, ...`
"""

import dataclasses
import math
import typing

from .config import MEL_BINS, REASONING, Config, ConfigError

MAY_BE_ZERO = ("seed", "muon_lr", "warmup", "weight_decay", "dropout")
MOST = 2 ** 31 - 1          # of any whole number
SECOND_FRAMES = 98          # log-mel frames of one second, as av_uie/log_mel.py makes them


def fields(cfg: Config) -> dict[str, object]:
    """{"lora.heads": 3, ...}: every field of a configuration."""
    flat = {"seed": cfg.seed, "reasoning": cfg.reasoning}
    for section in dataclasses.fields(cfg):
        part = getattr(cfg, section.name)
        if dataclasses.is_dataclass(part):
            flat |= {f"{section.name}.{field.name}": getattr(part, field.name)
                     for field in dataclasses.fields(part)}
    return flat


def kinds() -> dict[str, object]:
    """{"lora.heads": int, ...}: the type of every field."""
    flat = {}
    for section, kind in typing.get_type_hints(Config).items():
        if not dataclasses.is_dataclass(kind):
            flat[section] = kind
            continue
        flat |= {f"{section}.{key}": inner for key, inner in typing.get_type_hints(kind).items()}
    return flat


def shown(value) -> str:
    """A value as the command line takes it, at most some forty characters of it."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value[:4]))
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]} ..."


def check(cfg: Config) -> None:
    """ConfigError for the first field whose type, size or relation to another is impossible."""
    for (name, value), kind in zip(fields(cfg).items(), map(kinds().get, fields(cfg))):
        check_type(name, value, kind)
        check_size(name, value)
    check_multiples(cfg)
    check_relations(cfg)


def check_type(name: str, value, kind) -> None:
    """ConfigError unless the value is what the field's annotation says; True is no number."""
    if kind is int:
        good, words = type(value) is int, "a whole number"
    elif kind is float:
        good, words = type(value) in (int, float), "a number"
    elif kind is str:
        good, words = value in REASONING, " or ".join(REASONING)
    else:
        pair = isinstance(value, tuple) and len(value) == 2 and all(type(n) is int for n in value)
        good = pair or (value is None and type(None) in typing.get_args(kind))
        words = "two whole numbers"
    if not good:
        raise ConfigError(f"{name}: expected {words}, found {shown(value)}")


def check_size(name: str, value) -> None:
    """ConfigError for a number that is negative, zero where it may not be, or far too large."""
    if isinstance(value, str) or value is None:
        return
    states = name.startswith("vision.") and "layer" in name and name != "vision.layers"
    low = 0 if name.rpartition(".")[2] in MAY_BE_ZERO or states else 1e-12
    for number in value if isinstance(value, tuple) else [value]:
        if not low <= number < math.inf:
            words = "above 0" if low else "of at least 0"
            raise ConfigError(f"{name}: expected a number {words}, found {shown(number)}")
        if number > MOST and type(number) is int:
            raise ConfigError(f"{name}: expected at most {MOST}, found {shown(number)}")


def check_multiples(cfg: Config) -> None:
    """ConfigError where one size does not divide another."""
    vision, audio = cfg.vision, cfg.audio
    divisors = [("vision.image", vision.image, "vision.patch", vision.patch),
                ("audio.dim", audio.dim, "audio.conv_pos_groups", audio.conv_pos_groups)]
    for name in ("vision", "audio", "visual_qformer", "audio_qformer", "mask"):
        part = getattr(cfg, name)
        divisors.append((f"{name}.dim", part.dim, f"{name}.heads", part.heads))
    for name, value, other, divisor in divisors:
        if value % divisor:
            raise ConfigError(f"{name}: expected a multiple of {other} {divisor}, found {value}")

    for name, value, divisor, why in (
            ("vision.dim", vision.dim, 4, "sine and cosine of two axes"),
            ("audio.dim", audio.dim, 4, "sine and cosine of two axes"),
            ("mask.dim", cfg.mask.dim, 8, "its finest map has an eighth of the channels")):
        if value % divisor:
            raise ConfigError(f"{name}: expected a multiple of {divisor}, {why}, found {value}")


def check_relations(cfg: Config) -> None:
    """ConfigError where a number is larger than others allow."""
    vision, audio = cfg.vision, cfg.audio
    for name in ("mask_layers", "llm_layer"):
        value = getattr(vision, name)
        if max(value if isinstance(value, tuple) else (value,)) > vision.layers:
            raise ConfigError(f"vision.{name}: expected at most {vision.layers}, the number of "
                              f"layers, found {shown(value)}")
    if audio.patch > SECOND_FRAMES:
        raise ConfigError(f"audio.patch: expected at most {SECOND_FRAMES}, the log-mel frames of a "
                          f"second, found {audio.patch}")
    if audio.max_distance <= audio.buckets // 4:
        raise ConfigError("audio.max_distance: expected more than a quarter of the buckets, "
                          f"found {audio.max_distance}")

    # A cell of a Q-Former's grid without any patch would start from the mean of nothing.
    patches = {"visual_qformer": (vision.grid, vision.grid),
               "audio_qformer": (SECOND_FRAMES // audio.patch, MEL_BINS // audio.patch)}
    for name, most in patches.items():
        grid = getattr(cfg, name).grid
        if grid and (grid[0] > most[0] or grid[1] > most[1]):
            raise ConfigError(f"{name}.grid: expected at most {shown(most)}, the patches, "
                              f"found {shown(grid)}")
