"""Every number of a run in frozen dataclasses: `preset("tiny")`, then `--section.field value` overrides.

One dial: `--preset`. Sections are the model's parts and the run's stages; derived values are properties. An
override is checked for name and type at the border, with the nearest valid name in the error.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LLMConfig:
    """Decoder-only transformer as LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""
    vocab: int = 640               # rows of the embedding and of the output head
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6              # fewer than heads: grouped-query attention
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
        return self.image // self.patch


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
    queries: int = 4               # per frame or per second
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
