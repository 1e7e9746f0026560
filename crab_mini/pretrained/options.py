"""Published weights in a training run.

    --vision-weights FILE --audio-weights FILE --llm-weights PATH --tokenizer FILE
A part with published weights skips its own pre-training, and its section of the configuration
follows the file. With a published LLM three stages are left out: `text`, and `speak` and `segment`,
whose targets are the words of a script that only the text stage teaches. Nothing replaces them:
`align` trains the whole way from pixels and sound through the frozen LLM, text and masks together,
which is the paper's own alignment (give it more steps, and --align.muon_lr 0.02 while the
interfaces start from random weights). Tokens that LLaMA does not know get rows of their own, which
learn in `align` and `instruct` while the LLM's rows stay frozen. Frames are always normalised with
CLIP's mean and deviation. With its weights they also get its size, so the miniature is rendered at
that size.
"""

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..config import Config, ConfigError, override
from ..model.crab import Crab, SpecialIds
from ..model.state_hash import weights_key
from ..tokenizer import Tokenizer
from . import weights as official

BUILD = {"vision": official.clip_vit, "audio": official.beats, "llm": official.llama}
SKIPPED = {"vision": ("see",), "audio": ("hear",), "llm": ("text", "speak", "segment")}
FREE = ("mask_layers", "llm_layer")     # fields of vision that choose states and change no weight
FLOAT = 4                               # bytes; weights are held in fp32
STATE = 3                               # a trained weight's gradient and two moments, as large each


def files(options: Namespace) -> dict[str, Path]:
    """{part: file or folder} of the command line."""
    given = {part: getattr(options, f"{part}_weights") for part in BUILD}
    return {part: path for part, path in given.items() if path is not None}


def skipped(options: Namespace) -> dict[str, Path]:
    """{stage that is not run: the file that makes it unnecessary}."""
    return {stage: path for part, path in files(options).items() for stage in SKIPPED[part]}


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; for the CPU those that the system calls available.

    A system that does not report them is asked for all its memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # "Available" counts what the system can take back, such as cached files. Linux alone says it.
    info = Path("/proc/meminfo")
    lines = dict(line.split(":") for line in info.read_text().splitlines()) if info.exists() else {}
    if "MemAvailable" in lines:
        return 1024 * int(lines["MemAvailable"].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def afford(what: str, needed: float, device: torch.device) -> None:
    """ConfigError if the device cannot hold so many bytes."""
    free = free_memory(device)
    if needed > free:
        raise ConfigError(f"{what} takes at least {needed / 1e9:.1f} GB of memory, "
                          f"{free / 1e9:.1f} GB are free on {device}")


def load(cfg: Config, options: Namespace) -> tuple[Config, dict[str, nn.Module]]:
    """-> the configuration as the given files have it, and the parts that they hold.

    Parts: some of "vision", "audio", "llm". Raises WeightsError for a file that does not fit;
    ConfigError for an override that contradicts it, a file too large for this machine, and the
    paper's sizes without weights; each in one line.
    """
    lacking = [f"--{part}-weights" for part in BUILD if part not in files(options)]
    if options.preset == "paper" and lacking:
        raise ConfigError("--preset paper is trained from published weights only: "
                          f"give {', '.join(lacking)}")
    parts = {}
    for part, path in files(options).items():
        flag = f"--{part}-weights"
        try:
            # A file is mapped first and read later: whether it fits is known before that.
            state, settings = official.load_file(path), official.load_config(path)
            size = FLOAT * sum(tensor.numel() for tensor in state.values())
            afford(f"{flag} {path}", size, torch.device("cpu"))
            parts[part] = BUILD[part](settings, state)
        except official.WeightsError as error:
            raise official.WeightsError(f"{flag}: {error}") from None
        section = overridden(part, parts[part].cfg, options.overrides, flag)
        cfg = replace(cfg, **{part: section})
    return cfg, parts


def overridden(part: str, section, overrides: dict[str, str], flag: str):
    """A section of the configuration as a file has it, with the overrides that change no weight.

    ConfigError for one that contradicts the file.
    """
    cfg = Config(**{part: section})
    for name, text in overrides.items():
        of_part, _, key = name.partition(".")
        if of_part != part:
            continue
        wanted = override(cfg, name, text)
        if key not in FREE and wanted != cfg:
            raise ConfigError(f"--{name} {text}: expected {getattr(section, key)}, as in {flag}")
        cfg = wanted
    return getattr(cfg, part)


def tokenizer_of(options: Namespace, llm: nn.Module) -> Tokenizer:
    """LLaMA's own tokenizer with this project's tokens behind its vocabulary.

    ConfigError if it is another model's.
    """
    if not options.tokenizer.is_file():         # a pipe would be waited for
        raise ConfigError(f"--tokenizer {options.tokenizer}: expected a file, found none")
    tokenizer = Tokenizer.load(options.tokenizer)
    if tokenizer.known != llm.cfg.vocab_size:
        raise ConfigError(f"--tokenizer {options.tokenizer}: expected {llm.cfg.vocab_size} pieces, "
                          f"as --llm-weights has rows, found {tokenizer.known}")
    return tokenizer


def keys(parts: dict[str, nn.Module]) -> dict[str, str]:
    """{part: hash of its weights}, for the fingerprints of the stages that build on them."""
    return {part: weights_key(module.state_dict()) for part, module in parts.items()}


def outline(cfg: Config, ids: SpecialIds) -> Crab:
    """The whole model with LoRA on the meta device: shapes and counts, no memory."""
    with torch.device("meta"):
        return Crab(cfg, ids).with_lora()


def feasible(cfg: Config, options: Namespace, ids: SpecialIds, device: torch.device) -> None:
    """ConfigError if training needs more memory than there is.

    Counted are the weights, and for those that any stage trains their gradients and the optimizer's
    state. Activations are not counted.
    """
    # On the CPU the published weights are in memory already.
    crab = outline(cfg, ids)
    count = {name: sum(p.numel() for p in part.parameters())
             for name, part in crab.named_children()}
    loaded = sum(count[part] for part in files(options))
    trained = sum(count.values()) - loaded
    already = loaded if device.type == "cpu" else 0
    afford(f"training these sizes ({sum(count.values()) / 1e9:.2f} B parameters)",
           FLOAT * (loaded - already + (1 + STATE) * trained), device)
