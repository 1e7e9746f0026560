"""Scores of words: the answer to a question (AVQA), the events and the n-grams of a caption
(AVCap).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def exact_match(pred: Sequence[str | None], target: Sequence[str],
                types: Sequence[str]) -> dict[str, tuple[float, int]]:
    """{type: (accuracy, n)} in alphabetical order, with "all" for all types together.

    Case and surrounding blanks are ignored. None, an answer that could not be read, is wrong.
    """
    groups = defaultdict(list)
    for answer, true, kind in zip(pred, target, types, strict=True):
        right = answer is not None and answer.strip().lower() == true.strip().lower()
        groups[kind].append(right)
        groups["all"].append(right)
    return {kind: (sum(right) / len(right), len(right)) for kind, right in sorted(groups.items())}


def event_mentions(caption: str, vocabulary: Sequence[str]) -> set[str]:
    """The names of `vocabulary`, in small letters, that a caption mentions as whole words, with or
    without a plural s.

    Where two names overlap, only the longer one counts.
    """
    names = sorted((name.lower() for name in vocabulary), key=len, reverse=True)
    pattern = r"\b(" + "|".join(map(re.escape, names)) + r")(?:e?s)?\b"
    return set(re.findall(pattern, caption.lower())) if names else set()


def mention_scores(captions: Sequence[str | None], events: Sequence[set[str]],
                   vocabulary: Sequence[str]) -> dict[str, float]:
    """{"recall", "precision"} of the mentioned events, counted over all captions together.

    events: the true ones of each clip. Precision is 0 if nothing is mentioned.
    """
    hits = mentions = truths = 0
    for caption, true in zip(captions, events, strict=True):
        mentioned, true = event_mentions(caption or "", vocabulary), {name.lower() for name in true}
        hits += len(mentioned & true)
        mentions += len(mentioned)
        truths += len(true)
    return {"recall": hits / max(truths, 1), "precision": hits / max(mentions, 1)}


def ngrams(text: str, n: int) -> Counter:
    """How often each sequence of n words occurs in a text."""
    words = re.findall(r"\w+", text.lower())
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def cosine(a: dict[tuple, float], b: dict[tuple, float]) -> float:
    """The cosine of the angle between two sparse vectors; 0 if one of them is zero."""
    size = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(value * b.get(key, 0.0) for key, value in a.items()) / size if size else 0.0


def cider(captions: Sequence[str | None], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr of each caption against the references of its clip (Vedantam et al. 2015): (N,), from 0
    to 10.

    For n = 1 to 4: the cosine of tf-idf vectors of n-grams, idf = log(N / clips whose references
    have the n-gram), mean over the references. Then the mean over n, times 10, as the COCO
    evaluator prints it. Unlike the CIDEr-D of that evaluator there is no stemming, no clipping and
    no penalty for length. If there is only one clip, every idf is 0 and so is the score.
    """
    total = np.zeros(len(captions))
    for n in range(1, 5):
        # In how many clips each n-gram occurs.
        clips: Counter = Counter()
        for texts in references:
            clips.update({gram for text in texts for gram in ngrams(text, n)})
        for i, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            vector = tf_idf(ngrams(caption or "", n), clips, len(references))
            others = [tf_idf(ngrams(text, n), clips, len(references)) for text in texts]
            total[i] += np.mean([cosine(vector, other) for other in others])
    return 10 * total / 4


def tf_idf(counts: Counter, clips: Counter, total: int) -> dict[tuple, float]:
    """The tf-idf vector of a text. counts: of its n-grams. clips: how many of `total` clips have
    each n-gram.
    """
    return {gram: count * math.log(total / max(clips[gram], 1)) for gram, count in counts.items()}
