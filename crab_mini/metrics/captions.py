"""Scores of words: the answer of a question (AVQA), the events and n-grams of a caption (AVCap)."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def exact_match(pred: Sequence[str | None], target: Sequence[str],
                types: Sequence[str]) -> dict[str, tuple[float, int]]:
    """{type: (accuracy, n)}, sorted, and "all". Case and surrounding blanks do not count; None is wrong."""
    groups = defaultdict(list)
    for said, true, kind in zip(pred, target, types, strict=True):
        right = said is not None and said.strip().lower() == true.strip().lower()
        groups[kind].append(right)
        groups["all"].append(right)
    return {kind: (sum(right) / len(right), len(right)) for kind, right in sorted(groups.items())}


def event_mentions(caption: str, vocabulary: Sequence[str]) -> set[str]:
    """The names in `vocabulary` that a caption mentions as whole words, a plural s allowed; the longest name wins."""
    names = sorted((name.lower() for name in vocabulary), key=len, reverse=True)
    pattern = r"\b(" + "|".join(map(re.escape, names)) + r")(?:e?s)?\b"
    return set(re.findall(pattern, caption.lower())) if names else set()


def mention_scores(captions: Sequence[str | None], events: Sequence[set[str]],
                   vocabulary: Sequence[str]) -> dict[str, float]:
    """{"recall", "precision"} of mentioned events, pooled over captions. Precision is 0 when nothing is mentioned."""
    hits = said = there = 0
    for caption, true in zip(captions, events, strict=True):
        mentioned, true = event_mentions(caption or "", vocabulary), {name.lower() for name in true}
        hits, said, there = hits + len(mentioned & true), said + len(mentioned), there + len(true)
    return {"recall": hits / max(there, 1), "precision": hits / max(said, 1)}


def _ngrams(text: str, n: int) -> Counter:
    words = re.findall(r"\w+", text.lower())
    return Counter(zip(*(words[i:] for i in range(n))))


def cider(captions: Sequence[str | None], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr of each caption against its own references (Vedantam et al. 2015): (N,), from 0 to 10.

    For n = 1..4: cosine of tf-idf vectors, idf = log(N / clips whose references hold the n-gram), mean over references;
    then the mean over n, times 10 as the COCO evaluator prints it. Unlike that one's CIDEr-D no stemming, clipping or
    length penalty. A corpus of one clip has idf 0 throughout and scores 0.
    """
    total = np.zeros(len(captions))
    for n in range(1, 5):
        held = Counter(gram for refs in references for gram in {g for ref in refs for g in _ngrams(ref, n)})

        def vector(text: str) -> dict[tuple, float]:
            return {g: k * math.log(len(references) / max(held[g], 1)) for g, k in _ngrams(text, n).items()}

        for i, (caption, refs) in enumerate(zip(captions, references, strict=True)):
            a = vector(caption or "")
            total[i] += np.mean([_cosine(a, vector(ref)) for ref in refs])
    return 10 * total / 4


def _cosine(a: dict[tuple, float], b: dict[tuple, float]) -> float:
    size = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(v * b.get(g, 0.0) for g, v in a.items()) / size if size else 0.0
