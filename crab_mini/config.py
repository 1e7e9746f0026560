"""Every number of a run in frozen dataclasses: `preset("tiny")`, then `--section.field value` overrides.

One dial: `--preset nano|tiny|small|paper`. Sections are the model's parts and the run's stages; derived values are
properties. An override is checked for name and type at the border, with the nearest valid name in the error.
"""

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field, replace


class ConfigError(ValueError):
    """One line: which field, what was expected, what was found."""


@dataclass(frozen=True)
class LLMConfig:
    """Decoder-only transformer as LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""
    vocab: int = 640               # rows of the embedding and of the output head
    width: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4              # fewer than heads: grouped-query attention
    hidden: int = 512              # of the SwiGLU
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class VisionConfig:
    """Vision transformer as CLIP's."""
    image: int = 64                # frame side in pixels
    patch: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 512
    norm_eps: float = 1e-5
    mask_layers: tuple[int, int] = (2, 4)   # indices into hidden_states (0 = after the pre-norm) for the mask decoder
    llm_layer: int = 4                      # the layer the Q-Former reads

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image // self.patch

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices into hidden_states of all layers that somebody reads, in order."""
        return tuple(sorted({*self.mask_layers, self.llm_layer}))


@dataclass(frozen=True)
class AudioConfig:
    """BEATs: 16x16 patches of a 128-bin log-mel, post-norm transformer with gated relative positions."""
    patch: int = 16
    embed: int = 64                # width of the patch convolution, before the projection to `width`
    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 512
    conv_pos: int = 16             # kernel of the convolutional position code
    conv_pos_groups: int = 4
    buckets: int = 32              # relative-position buckets
    max_distance: int = 128


@dataclass(frozen=True)
class QFormerConfig:
    """Learned queries that cross-attend to encoder features."""
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    queries: int = 4                        # per frame or per second
    grid: tuple[int, int] | None = (2, 2)   # queries anchored on the cells of this grid; None: free queries


@dataclass(frozen=True)
class MaskConfig:
    """SAM's two-way transformer and mask decoder, one per scale."""
    width: int = 128               # of the prompt tokens and the image embedding
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    scales: int = 2
    tokens: int = 3                # <mask_i> tokens per scale


@dataclass(frozen=True)
class LoRAConfig:
    """Interaction-aware LoRA: one shared A, `heads` B matrices, a router."""
    rank: int = 8
    heads: int = 3
    alpha: float = 16.0
    dropout: float = 0.0


@dataclass(frozen=True)
class StageConfig:
    """One stage of training. Muon moves the hidden matrices, AdamW everything else (see training.py)."""
    steps: int = 1000
    batch: int = 64                # rows of one optimiser step, over all processes
    lr: float = 1e-3               # AdamW
    muon_lr: float = 0.02          # 0: AdamW for all
    warmup: int = 50               # steps
    weight_decay: float = 0.01
    clip: float = 1.0              # largest gradient norm


@dataclass(frozen=True)
class WorldConfig:
    """The data set that `train.py` makes by itself."""
    clips: int = 3000
    test_clips: int = 700
    rows_per_task: int = 300       # test rows a task at most


@dataclass(frozen=True)
class Config:
    """A whole run."""
    llm: LLMConfig = LLMConfig()
    vision: VisionConfig = VisionConfig()
    audio: AudioConfig = AudioConfig()
    visual_qformer: QFormerConfig = QFormerConfig()
    audio_qformer: QFormerConfig = QFormerConfig(queries=2, grid=(1, 1))
    mask: MaskConfig = MaskConfig()
    lora: LoRAConfig = LoRAConfig()
    world: WorldConfig = WorldConfig()
    text: StageConfig = StageConfig(steps=1500)
    see: StageConfig = StageConfig(steps=2000)
    hear: StageConfig = StageConfig(steps=2000)
    speak: StageConfig = StageConfig(steps=1000)      # align: the Q-Formers learn the script's words
    segment: StageConfig = StageConfig(steps=1000)    # align: masks of named objects
    align: StageConfig = StageConfig(steps=500)
    instruct: StageConfig = StageConfig(steps=800, lr=1e-3, muon_lr=0.0)
    seed: int = 0

    def to_dict(self) -> dict:
        """Plain nested dict, as checkpoints hold it."""
        return dataclasses.asdict(self)


def from_dict(values: dict) -> Config:
    """The inverse of `Config.to_dict`; ConfigError names a field that this version does not know."""
    sections = typing.get_type_hints(Config)
    made = {}
    for name, value in values.items():
        if name not in sections:
            raise ConfigError(f"{name}: no such section of the configuration{_nearest(name, sections)}")
        kind = sections[name]
        if not dataclasses.is_dataclass(kind):
            made[name] = value
            continue
        known = {f.name for f in dataclasses.fields(kind)}
        for key in value:
            if key not in known:
                raise ConfigError(f"{name}.{key}: no such field{_nearest(key, known)}")
        made[name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
    return Config(**made)


def _nearest(name: str, valid) -> str:
    close = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.4)
    return f"; nearest: {', '.join(close)}" if close else f"; expected one of {', '.join(sorted(valid))}"


def _read(text: str, kind, name: str):
    """Text of the command line -> a value of the field's type."""
    try:
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if text.lower() == "none" and type(None) in typing.get_args(kind):
            return None
        numbers = tuple(int(part) for part in text.split(","))
        if len(numbers) == 2:
            return numbers
    except ValueError:
        pass
    shown = kind.__name__ if kind in (int, float) else "two whole numbers such as 2,4" + (
        ", or none" if type(None) in typing.get_args(kind) else "")
    raise ConfigError(f"--{name}: expected {shown}, found '{text}'")


def override(cfg: Config, name: str, text: str) -> Config:
    """One `--section.field value` (or `--seed 3`) applied; ConfigError names what is wrong and the nearest names."""
    sections = typing.get_type_hints(Config)
    section, _, key = name.partition(".")
    names = [f"{s}.{f.name}" for s, kind in sections.items() if dataclasses.is_dataclass(kind)
             for f in dataclasses.fields(kind)] + ["seed"]
    if name not in names:
        raise ConfigError(f"--{name}: no such field{_nearest(name, names)}")
    if not key:
        return replace(cfg, **{section: _read(text, sections[section], name)})
    kind = typing.get_type_hints(sections[section])[key]
    return replace(cfg, **{section: replace(getattr(cfg, section), **{key: _read(text, kind, name)})})


def _scaled(cfg: Config, **steps: int) -> Config:
    return replace(cfg, **{name: replace(getattr(cfg, name), steps=count) for name, count in steps.items()})


def _presets() -> dict[str, Config]:
    tiny = Config()
    return {"tiny": tiny}


def preset(name: str) -> Config:
    """A named configuration; ConfigError with the nearest names if there is none."""
    presets = _presets()
    if name not in presets:
        raise ConfigError(f"--preset {name}: no such preset{_nearest(name, presets)}")
    return presets[name]
