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
    vocab: int = 1500              # rows of the embedding and of the output head: every word and number of the world one
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
    """One stage of training. Muon moves the hidden matrices, or LoRA's factors where there are some, AdamW everything
    else (see optimiser.py)."""
    steps: int = 1000
    batch: int = 64                # rows of one optimiser step, over all processes
    lr: float = 1e-3               # AdamW
    muon_lr: float = 0.02          # 0: AdamW for all
    warmup: int = 50               # steps
    weight_decay: float = 0.01
    clip: float = 1.0              # largest gradient norm
    minutes: float = 3.0           # what the steps take on two fast cores; --max-minutes is shared out by it


@dataclass(frozen=True)
class WorldConfig:
    """The data set that `train.py` makes by itself."""
    clips: int = 3000
    test_clips: int = 800
    rows_per_task: int = 300       # test rows a task at most
    seed: int = 0                  # of the scenes


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
    instruct: StageConfig = StageConfig(steps=800, lr=1e-3, warmup=10)
    seed: int = 0

    def model_dict(self) -> dict:
        """The sections that say what the model is, without LoRA."""
        return {name: dataclasses.asdict(getattr(self, name))
                for name in ("llm", "vision", "audio", "visual_qformer", "audio_qformer", "mask")}

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


def _tiny() -> Config:
    """Half an hour on two cores."""
    return Config(
        text=StageConfig(steps=1200, batch=32, lr=2e-3, muon_lr=0.005, minutes=5.5),
        see=StageConfig(steps=900, batch=64, minutes=2.0),
        hear=StageConfig(steps=1200, batch=64, minutes=2.4),
        speak=StageConfig(steps=450, batch=256, lr=2e-3, minutes=1.5),
        segment=StageConfig(steps=450, batch=48, minutes=1.8),
        align=StageConfig(steps=150, batch=64, muon_lr=0.0, minutes=1.5),
        instruct=StageConfig(steps=450, batch=64, lr=2e-3, muon_lr=0.02, warmup=10, minutes=8.0))


def _nano() -> Config:
    """Minutes: for tests and for a first look; it learns its few clips, not the tasks."""
    tiny = _tiny()
    short = {name: replace(getattr(tiny, name), steps=steps, batch=16, warmup=5, minutes=0.2) for name, steps in
             dict(text=200, see=40, hear=40, speak=40, segment=80, align=60, instruct=60).items()}
    return replace(
        tiny, llm=replace(tiny.llm, width=96, layers=2, hidden=256), world=WorldConfig(48, 16, 12),
        vision=replace(tiny.vision, width=64, layers=2, heads=2, hidden=128, mask_layers=(1, 2), llm_layer=2),
        audio=replace(tiny.audio, embed=32, width=64, layers=2, heads=2, hidden=128),
        visual_qformer=replace(tiny.visual_qformer, width=64, heads=2, hidden=128, layers=1),
        audio_qformer=replace(tiny.audio_qformer, width=64, heads=2, hidden=128, layers=1),
        mask=replace(tiny.mask, width=64, heads=2, hidden=128, layers=1), lora=replace(tiny.lora, rank=4), **short)


def _small() -> Config:
    """More than an hour on two fast cores, a few on a laptop. What tiny gets wrong is mostly read wrongly from its own
    lists, so it is the language model that grows; the encoders only see and hear more."""
    tiny = _tiny()
    return replace(
        tiny, llm=replace(tiny.llm, width=256, layers=6, hidden=688), world=replace(tiny.world, clips=6000),
        text=replace(tiny.text, steps=2400, minutes=22.0),
        see=replace(tiny.see, steps=1400, minutes=3.1),
        hear=replace(tiny.hear, steps=2000, minutes=3.9),
        speak=replace(tiny.speak, steps=600, minutes=1.5),
        segment=replace(tiny.segment, steps=600, minutes=4.5),
        align=replace(tiny.align, steps=250, minutes=4.6),
        instruct=replace(tiny.instruct, steps=750, minutes=20.0))


def _paper() -> Config:
    """The paper's sizes: ViT-L/14 at 224, BEATs iter3+, LLaMA-2-7B, 32 + 32 queries, rank 8, three heads.

    Layers are the official configuration's indices into hidden_states: 14 and 22 for the masks, 23 for the LLM (the
    paper's text says 14 and 23).
    """
    qformer = QFormerConfig(768, 2, 12, 3072, 32, None)
    return Config(
        llm=LLMConfig(32000, 4096, 32, 32, 32, 11008), lora=LoRAConfig(8, 3, 16.0),
        vision=VisionConfig(224, 14, 1024, 24, 16, 4096, mask_layers=(14, 22), llm_layer=23),
        audio=AudioConfig(16, 512, 768, 12, 12, 3072, 128, 16, 320, 800),
        visual_qformer=qformer, audio_qformer=qformer, mask=MaskConfig(256, 2, 8, 2048))


_PRESETS = {"nano": _nano, "tiny": _tiny, "small": _small, "paper": _paper}


def preset(name: str) -> Config:
    """A named configuration; ConfigError with the nearest names if there is none."""
    if name not in _PRESETS:
        raise ConfigError(f"--preset {name}: no such preset{_nearest(name, _PRESETS)}")
    return _PRESETS[name]()
