"""The LLM's memory while it writes: keys and values of all earlier tokens.

    cache = KVCache(layers=4, capacity=60);  llm.encode(embeds, mask, cache)
Unusual: room for the longest answer is allocated at once, so nothing is copied as the answer grows.
"""

from torch import Tensor


class KVCache:
    """Keys and values of all past tokens, allocated once for `capacity` tokens a row.

    length: columns written so far. attention_mask (B,capacity): which of them are real; None while
    there was no padding. seen (B,1): real tokens of a row so far, which is its next token's
    position.
    """

    def __init__(self, layers: int, capacity: int):
        self.capacity, self.length = capacity, 0
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.attention_mask: Tensor | None = None
        self.seen: Tensor | int = 0

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends k, v (B,n,L,d) of one layer; returns all of that layer, (B,n,length+L,d) each."""
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"KVCache: allocated for {self.capacity} tokens, found {end}")
        # Room is made at the first write: before it dtype, device and heads are unknown.
        if self.kept[layer] is None:
            self.kept[layer] = tuple(t.new_empty(*t.shape[:2], self.capacity, t.shape[3])
                                     for t in (k, v))                             # (B,n,capacity,d)
        keys, values = self.kept[layer]
        keys[:, :, self.length:end], values[:, :, self.length:end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def extend(self, mask: Tensor | None, length: int) -> Tensor | None:
        """Notes which of `length` new columns are real; mask (B,length), None for all.

        Returns which of all columns are real, (B,self.length+length), None for all.
        """
        # As long as every column is real there is no mask, and attention can do without one.
        if mask is not None and self.attention_mask is None:
            self.attention_mask = mask.new_ones(len(mask), self.capacity)             # (B,capacity)
        if mask is not None:
            self.attention_mask[:, self.length:self.length + length] = mask
        if self.attention_mask is None:
            return None
        return self.attention_mask[:, :self.length + length]
