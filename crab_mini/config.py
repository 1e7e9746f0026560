"""Every number of a run in frozen dataclasses: `preset("tiny")`, then `--section.field value` overrides.

One dial: `--preset nano|tiny|small|paper`. Sections are the model's parts and the run's stages;
derived values are properties. An override is checked for name and type here; an error gives the
nearest valid name.
"""

import dataclasses
import difflib
import typing
import zlib
from dataclasses import dataclass, replace

REASONING = ("on", "off")   # off: answers are the bare tags
MEL_BINS = 128              # of a log-mel frame, the published BEATs' number
MASK_SCALES = 2             # layers of the ViT that the mask decoders read: VisionConfig.mask_layers
MASK_TOKENS = 3             # <mask_i> tokens that the LLM writes for each of them


def seed_of(*names) -> int:
    """A seed from numbers and names, such as seed_of(cfg.seed, "align"): 32 bits."""
    return zlib.crc32("/".join(map(str, names)).encode())


class ConfigError(ValueError):
    """One line: which field, what was expected, what was found."""


@dataclass(frozen=True)
class LLMConfig:
    """Decoder-only transformer as LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""
    # Rows of the embedding and of the output head. 1200 give every word and every number of the
    # miniature's text a token of its own.
    vocab_size: int = 1200
    dim: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4              # fewer than heads: grouped-query attention
    ffn_dim: int = 512             # of the SwiGLU
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class VisionConfig:
    """Vision transformer as CLIP's."""
    image: int = 64                # frame side in pixels
    patch: int = 8
    dim: int = 128
    layers: int = 4
    heads: int = 4
    ffn_dim: int = 512
    norm_eps: float = 1e-5
    mask_layers: tuple[int, int] = (2, 4)   # indices into hidden_states (0 = after the pre-norm) for the mask decoder
    llm_layer: int = 4                      # the layer the Q-Former reads

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image // self.patch

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices into hidden_states of all layers that are read, in order: the K kept layers."""
        return tuple(sorted({*self.mask_layers, self.llm_layer}))

    @property
    def kept_for_llm(self) -> int:
        """Which of the kept layers the Q-Former reads."""
        return self.kept.index(self.llm_layer)

    @property
    def kept_for_masks(self) -> list[int]:
        """Which of the kept layers the mask decoders read."""
        return [self.kept.index(layer) for layer in self.mask_layers]


@dataclass(frozen=True)
class AudioConfig:
    """BEATs: 16x16 patches of a 128-bin log-mel, post-norm transformer with gated relative positions."""
    patch: int = 16
    embed: int = 64                # width of the patch convolution, before the projection to `dim`
    dim: int = 128
    layers: int = 4
    heads: int = 4
    ffn_dim: int = 512
    conv_pos: int = 16             # kernel of the convolutional position code
    conv_pos_groups: int = 4
    buckets: int = 32              # relative-position buckets
    max_distance: int = 128


@dataclass(frozen=True)
class QFormerConfig:
    """Learned queries that cross-attend to encoder features."""
    dim: int = 128
    layers: int = 2
    heads: int = 4
    ffn_dim: int = 256
    queries: int = 4                        # per frame or per second
    grid: tuple[int, int] | None = (2, 2)   # queries anchored on the cells of this grid; None: free queries


@dataclass(frozen=True)
class MaskConfig:
    """SAM's two-way transformer and mask decoder, one per scale."""
    dim: int = 128               # of the prompt tokens and the image embedding
    layers: int = 2
    heads: int = 4
    ffn_dim: int = 256


@dataclass(frozen=True)
class LoRAConfig:
    """Interaction-aware LoRA: one shared A, `heads` B matrices, a router."""
    rank: int = 8
    heads: int = 3
    alpha: float = 16.0
    dropout: float = 0.0


@dataclass(frozen=True)
class StageConfig:
    """One stage of training. Muon moves the hidden matrices, AdamW everything else.

    See training/optimizer.py.
    """
    steps: int
    batch: int = 64                # rows of one optimizer step, over all processes
    lr: float = 1e-3               # of AdamW
    muon_lr: float = 0.02          # of Muon; 0: AdamW for all
    warmup: int = 50               # steps
    weight_decay: float = 0.01
    clip: float = 1.0              # largest gradient norm
    # An estimate of what the steps take on two fast cores; --max-minutes is shared out by it. It is
    # no part of a checkpoint's fingerprint.
    minutes: float = 3.0


@dataclass(frozen=True)
class WorldConfig:
    """The data set that `train.py` makes by itself."""
    clips: int = 3000
    test_clips: int = 800
    rows_per_task: int = 300       # test rows a task at most
    seed: int = 0                  # of the scenes


@dataclass(frozen=True)
class Config:
    """A whole run. The defaults are the preset `tiny`: half an hour on two cores."""
    llm: LLMConfig = LLMConfig()
    vision: VisionConfig = VisionConfig()
    audio: AudioConfig = AudioConfig()
    visual_qformer: QFormerConfig = QFormerConfig()
    audio_qformer: QFormerConfig = QFormerConfig(queries=2, grid=(1, 1))
    mask: MaskConfig = MaskConfig()
    lora: LoRAConfig = LoRAConfig()
    world: WorldConfig = WorldConfig()
    text: StageConfig = StageConfig(steps=1600, batch=32, lr=2e-3, muon_lr=0.005, minutes=7.0)
    see: StageConfig = StageConfig(steps=900, minutes=2.0)
    hear: StageConfig = StageConfig(steps=1200, minutes=2.4)
    speak: StageConfig = StageConfig(steps=450, batch=256, lr=2e-3, minutes=1.5)
    segment: StageConfig = StageConfig(steps=450, batch=48, minutes=1.8)
    align: StageConfig = StageConfig(steps=150, muon_lr=0.0, minutes=1.5)
    instruct: StageConfig = StageConfig(steps=420, lr=2e-3, muon_lr=0.0, minutes=7.5)
    seed: int = 0
    reasoning: str = "on"          # one of REASONING

    def model_dict(self) -> dict:
        """The sections that say what the model is, without LoRA."""
        return {name: dataclasses.asdict(getattr(self, name))
                for name in ("llm", "vision", "audio", "visual_qformer", "audio_qformer", "mask")}

    def to_dict(self) -> dict:
        """Plain nested dict, as checkpoints hold it."""
        return dataclasses.asdict(self)


# Fields that had another name in version 0.1, as (section, old name) -> new name: its checkpoints are still read.
OLD_FIELDS = {(section, old): new for section in ("llm", "vision", "audio", "visual_qformer", "audio_qformer", "mask")
              for old, new in (("width", "dim"), ("hidden", "ffn_dim"), ("vocab", "vocab_size"))}
# Fields of version 0.1 that could have one value only: that value is read over, any other is an unknown field.
OLD_CONSTANTS = {("mask", "scales"): MASK_SCALES, ("mask", "tokens"): MASK_TOKENS}


def from_dict(values: dict) -> Config:
    """The inverse of `Config.to_dict`, for version 0.1's names too; ConfigError names a field that is not known."""
    sections = typing.get_type_hints(Config)
    made = {}
    if not isinstance(values, dict):
        raise ConfigError(f"expected sections and their fields, found {type(values).__name__}")
    for name, value in values.items():
        if name not in sections:
            raise ConfigError(f"{name}: no such section of the configuration{_nearest(name, sections)}")
        kind = sections[name]
        if not dataclasses.is_dataclass(kind):
            made[name] = value
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: expected a section, found {type(value).__name__}")
        known = {f.name for f in dataclasses.fields(kind)}
        value = {OLD_FIELDS.get((name, key), key): inner for key, inner in value.items()
                 if (name, key) not in OLD_CONSTANTS or inner != OLD_CONSTANTS[name, key]}
        for key in value:
            if key not in known:
                raise ConfigError(f"{name}.{key}: no such field{_nearest(key, known)}")
        made[name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
    return Config(**made)


def _nearest(name: str, valid) -> str:
    close = difflib.get_close_matches(str(name)[:80], list(valid), n=3, cutoff=0.4)
    return f"; nearest: {', '.join(close)}" if close else f"; expected one of {', '.join(sorted(valid))}"


def _expected(kind) -> str:
    """What the command line accepts for a field of this type, in words."""
    if kind is str:
        return " or ".join(REASONING)
    if kind in (int, float):
        return kind.__name__
    words = "two whole numbers such as 2,4"
    return f"{words}, or none" if type(None) in typing.get_args(kind) else words


def _read(text: str, kind, name: str):
    """Text of the command line -> a value of the field's type; ConfigError if it is none."""
    try:
        if kind in (int, float):
            return kind(text)
        if kind is str:
            if text in REASONING:
                return text
        elif text.lower() == "none" and type(None) in typing.get_args(kind):
            return None
        else:
            first, second = text.split(",")
            return int(first), int(second)
    except ValueError:
        pass
    raise ConfigError(f"--{name}: expected {_expected(kind)}, found '{text}'")


def override(cfg: Config, name: str, text: str) -> Config:
    """One `--section.field value` (or `--seed 3`) applied.

    ConfigError names what is wrong, with the nearest names.
    """
    sections = typing.get_type_hints(Config)
    names = ["seed", "reasoning"]
    for section, kind in sections.items():
        if dataclasses.is_dataclass(kind):
            names += [f"{section}.{field.name}" for field in dataclasses.fields(kind)]
    if name not in names:
        raise ConfigError(f"--{name}: no such field{_nearest(name, names)}")

    section, _, key = name.partition(".")
    if not key:
        return replace(cfg, **{section: _read(text, sections[section], name)})
    kind = typing.get_type_hints(sections[section])[key]
    changed = replace(getattr(cfg, section), **{key: _read(text, kind, name)})
    return replace(cfg, **{section: changed})


def _nano() -> Config:
    """Minutes: for tests and for a first look; it learns its few clips, not the tasks."""
    tiny = Config()
    steps = dict(text=200, see=40, hear=40, speak=40, segment=80, align=60, instruct=60)
    stages = {name: replace(getattr(tiny, name), steps=count, batch=16, warmup=5, minutes=0.2)
              for name, count in steps.items()}
    narrow = dict(dim=64, heads=2, ffn_dim=128)         # every part of the model but the LLM
    return replace(
        tiny,
        llm=replace(tiny.llm, dim=96, layers=2, ffn_dim=256),
        vision=replace(tiny.vision, **narrow, layers=2, mask_layers=(1, 2), llm_layer=2),
        audio=replace(tiny.audio, **narrow, layers=2, embed=32),
        visual_qformer=replace(tiny.visual_qformer, **narrow, layers=1),
        audio_qformer=replace(tiny.audio_qformer, **narrow, layers=1),
        mask=replace(tiny.mask, **narrow, layers=1),
        lora=replace(tiny.lora, rank=4),
        world=replace(tiny.world, clips=48, test_clips=16, rows_per_task=12),
        **stages)


def _small() -> Config:
    """More than an hour on two fast cores, a few hours on a laptop.

    The errors of `tiny` are mostly in reading the lists that it wrote itself. So the language model
    grows; the encoders only train for more steps.
    """
    tiny = Config()
    return replace(
        tiny,
        llm=replace(tiny.llm, dim=256, layers=6, ffn_dim=688),
        world=replace(tiny.world, clips=6000),
        text=replace(tiny.text, steps=2400, minutes=22.0),
        see=replace(tiny.see, steps=1400, minutes=3.1),
        hear=replace(tiny.hear, steps=2000, minutes=3.9),
        speak=replace(tiny.speak, steps=600, minutes=1.5),
        segment=replace(tiny.segment, steps=600, minutes=4.5),
        align=replace(tiny.align, steps=250, minutes=4.6),
        instruct=replace(tiny.instruct, steps=750, minutes=20.0))


def _paper() -> Config:
    """The paper's sizes: ViT-L/14 at 224, BEATs iter3+, LLaMA-2-7B, 32 + 32 queries, rank 8, three heads.

    vision.mask_layers and vision.llm_layer are the official configuration's indices into
    hidden_states: 14 and 22 for the masks, 23 for the LLM (the paper's text says 14 and 23).
    With published weights only two stages are trained, `align` and `instruct`.
    """
    qformer = QFormerConfig(dim=768, layers=2, heads=12, ffn_dim=3072, queries=32, grid=None)
    return Config(
        llm=LLMConfig(vocab_size=32000, dim=4096, layers=32, heads=32, kv_heads=32, ffn_dim=11008),
        vision=VisionConfig(image=224, patch=14, dim=1024, layers=24, heads=16, ffn_dim=4096,
                            mask_layers=(14, 22), llm_layer=23),
        audio=AudioConfig(patch=16, embed=512, dim=768, layers=12, heads=12, ffn_dim=3072,
                          conv_pos=128, conv_pos_groups=16, buckets=320, max_distance=800),
        visual_qformer=qformer,
        audio_qformer=qformer,
        mask=MaskConfig(dim=256, layers=2, heads=8, ffn_dim=2048),
        lora=LoRAConfig(rank=8, heads=3, alpha=16.0),
        align=StageConfig(steps=500),
        instruct=StageConfig(steps=800, muon_lr=0.0))


_PRESETS = {"nano": _nano, "tiny": Config, "small": _small, "paper": _paper}


def preset(name: str) -> Config:
    """A named configuration; ConfigError with the nearest names if there is none."""
    if name not in _PRESETS:
        raise ConfigError(f"--preset {name}: no such preset{_nearest(name, _PRESETS)}")
    return _PRESETS[name]()
