"""BEATs' pre-training: random labels for patches of sound, and their prediction where the patch is hidden.

    log-mel patch (256 numbers) -> frozen random projection -> nearest of C frozen random codes -> label

This is the tokenizer of BEATs' first iteration (arXiv 2212.09058, section 3.3.1; section 3.2 for the loss): nothing of
it is trained, yet patches that sound alike share a label, so predicting hidden labels teaches what sounds go on how.
Unusual: nearest means by direction, both sides brought to length one, as in the random-projection quantizer that BEATs
cites (arXiv 2202.01855). Without it a patch's loudness decides: on 120 seconds of the world's sounds the labels'
perplexity is 51 with it and 7 without (distances, patches scaled to the codes' size).
Departs from BEATs in two places: hidden patches stay in the sequence as zeros (see `masked_prediction_loss`), and the
later iterations, whose tokenizer is distilled from a trained encoder, are left out.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..config import AudioConfig

MASKED = 0.75               # of the patches, BEATs section 3.2


class AcousticTokenizer(nn.Module):
    """Frozen projection (patch * patch, size) and codes (C,size), saved with the state so that labels stay the same."""

    def __init__(self, cfg: AudioConfig, codes: int = 256, size: int = 16, seed: int = 0):
        """codes: number of labels. size: width after the projection. seed: which random tokenizer."""
        super().__init__()
        self.patch, self.codes = cfg.patch, codes
        rng = torch.Generator().manual_seed(seed)
        self.register_buffer("projection", torch.randn(cfg.patch ** 2, size, generator=rng))
        self.register_buffer("codebook", F.normalize(torch.randn(codes, size, generator=rng), dim=1))

    @torch.no_grad()
    def forward(self, fbank: Tensor) -> Tensor:
        """fbank (B,F,128) -> label of each patch (B,N) int64, in the order of the encoder's tokens."""
        with torch.autocast(fbank.device.type, enabled=False):
            tiles = fbank.float().unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch)
            patches = tiles.flatten(3).flatten(1, 2)                             # (B,N,patch*patch)
            return (patches @ self.projection @ self.codebook.T).argmax(2)      # codes of length one: largest product


def draw_hidden(rows: int, patches: int, rng: torch.Generator) -> Tensor:
    """Which patches are hidden (rows,patches) bool: MASKED of them in each row. rng: a generator on the CPU."""
    chosen = torch.rand(rows, patches, generator=rng).topk(round(MASKED * patches), 1).indices
    return torch.zeros(rows, patches, dtype=torch.bool).scatter_(1, chosen, True)


def masked_prediction_loss(encoder: nn.Module, head: nn.Module, tokenizer: AcousticTokenizer, fbank: Tensor,
                           hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the hidden patches' labels, summed, and their number: fbank (B,F,128) -> (sum, count).

    encoder: a BEATs; head: features (...,D) -> logits (...,C); hidden (B,N) bool, see `draw_hidden`: part of the batch,
    so that a step hides the same patches however many processes share it. BEATs leaves hidden patches out of the
    encoder and gives them to a deeper label predictor; here the encoder sees all places, the hidden ones as zeros like
    padding. Its position code is a convolution over neighbours, which a sequence with holes closed up would mislead,
    and no parameter is needed that the published encoder does not have.
    """
    tokens = encoder.embed(fbank)                                                # (B,N,D)
    features = encoder.encode(tokens.masked_fill(hidden[..., None], 0))          # (B,N,D)
    logits, labels = head(features[hidden]).float(), tokenizer(fbank)[hidden]    # (B*count,C), (B*count,)
    return F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(len(labels), device=labels.device)
