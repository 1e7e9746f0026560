"""BEATs' pre-training: patches of sound get labels, and those of hidden patches are predicted.

    log-mel patch (256 numbers) -> frozen random projection -> nearest of C frozen codes -> label

This is the tokenizer of BEATs' first iteration (arXiv 2212.09058, section 3.3.1; the loss is in
section 3.2). It is never trained. Patches that sound alike get the same label. So an encoder that
predicts the label of a hidden patch has learned how a sound continues.
Unusual: the nearest code is the one with the most similar direction. Projected patches and codes
are compared at length one, as in the random-projection quantizer that BEATs cites (arXiv
2202.01855). Otherwise the loudness of a patch would decide: on 120 seconds of the world's sounds
the labels' perplexity is 51 with directions and 7 with distances (of patches as long as codes).
Departs from BEATs in two places. Hidden patches stay in the sequence as zeros (see
`masked_prediction_loss`). The later iterations, whose tokenizer is distilled from a trained
encoder, are left out.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..config import AudioConfig

MASKED = 0.75               # share of the patches that is hidden (BEATs, section 3.2)


class AcousticTokenizer(nn.Module):
    """A log-mel -> a label for each of its patches.

    projection (patch * patch, size) and codebook (C,size) are frozen. They are saved with the
    state, so that labels stay the same.
    """

    def __init__(self, cfg: AudioConfig, codes: int = 256, size: int = 16, seed: int = 0):
        """codes: number C of labels. size: width after the projection. seed: of random numbers."""
        super().__init__()
        self.patch, self.codes = cfg.patch, codes
        rng = torch.Generator().manual_seed(seed)
        self.register_buffer("projection", torch.randn(cfg.patch ** 2, size, generator=rng))
        codebook = torch.randn(codes, size, generator=rng)
        self.register_buffer("codebook", F.normalize(codebook, dim=1))

    @torch.no_grad()
    def forward(self, fbank: Tensor) -> Tensor:
        """fbank (B,F,128) -> labels (B,P) int64 of its patches, in the order of the encoder's."""
        side = self.patch
        with torch.autocast(fbank.device.type, enabled=False):
            tiles = fbank.float().unfold(1, side, side).unfold(2, side, side)
            patches = tiles.flatten(3).flatten(1, 2)                             # (B,P,side*side)
            # Codes have length one, so the most similar direction has the largest product. The
            # length of the projected patch does not change which product is the largest.
            return (patches @ self.projection @ self.codebook.T).argmax(2)       # (B,P)


def draw_hidden(rows: int, patches: int, rng: torch.Generator) -> Tensor:
    """Which patches are hidden: (rows,patches) bool, the share MASKED in each row.

    rng: a generator on the CPU.
    """
    chosen = torch.rand(rows, patches, generator=rng).topk(round(MASKED * patches), 1).indices
    return torch.zeros(rows, patches, dtype=torch.bool).scatter_(1, chosen, True)


def masked_prediction_loss(encoder: nn.Module, head: nn.Module, tokenizer: AcousticTokenizer,
                           fbank: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the hidden patches' labels: fbank (B,F,128) -> its sum and their number.

    encoder: a BEATs. head: features (N,Da) -> logits (N,C). hidden (B,P) bool: see `draw_hidden`.
    It is part of the batch, so that a step hides the same patches however many processes share it.
    BEATs leaves hidden patches out of the encoder and gives them to a deeper label predictor. Here
    the encoder gets all patches, the hidden ones as zeros, like padding. The reasons: its position
    code is a convolution over neighbours, which would mistake the patches around a hole for
    neighbours; and no parameter is needed that the published encoder does not have.
    """
    tokens = encoder.embed(fbank)                                                # (B,P,Da)
    features = encoder.encode(tokens.masked_fill(hidden[..., None], 0))          # (B,P,Da)
    logits = head(features[hidden]).float()                                      # (N,C)
    labels = tokenizer(fbank)[hidden]                                            # (N,)
    count = torch.tensor(len(labels), device=labels.device)
    return F.cross_entropy(logits, labels, reduction="sum"), count
