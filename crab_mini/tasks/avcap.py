"""AVCap: a caption of what is seen and heard (paper, section 3).

    <answer> A dog runs and barks. </answer>        or, as in AV-UIE, the whole text
"""

import re

import numpy as np

from .. import metrics
from .base import VIDEO, Task
from .score import Answer, Score, measure


def share_of(column: int):
    """A statistic of rows (hits, mentioned, true): hits per entry of a column; NaN for no entry."""
    def share(rows: np.ndarray) -> float:
        total = rows[:, column].sum()
        return rows[:, 0].sum() / total if total else float("nan")
    return share


class AVCap(Task):
    """Audio-visual captioning."""
    name = "avcap"
    fields = {"video_id": "id", **VIDEO, "label_content": "text"}
    identity = ("video_id",)

    def prompt(self, fields: dict) -> str:
        return "describe what is seen and heard."

    def bare(self, fields: dict) -> str:
        return self.parse(fields["label_content"]) or fields["label_content"]

    def parse(self, text: str) -> str | None:
        """What stands between the tags, or the whole text where there is no tag.

        None for an empty caption, and where the tag is never closed.
        """
        if "<answer>" not in text:
            return text.strip() or None
        found = re.search(r"<answer>(.*?)</answer>", text, re.S)
        return found[1].strip() or None if found else None

    def score(self, answers: list[Answer], vocabulary: list[str]) -> list[Score]:
        """Recall and precision of mentioned events, and CIDEr. Baseline: the next caption."""
        # The baseline gives each clip the caption of the next; it needs two clips.
        captions = [a.parsed for a in answers]
        truth = [self.bare(a.sample.fields) for a in answers]
        shifted = truth[1:] + truth[:1] if len(truth) > 1 else None

        # Events by their names: how many are mentioned rightly, mentioned, and true.
        events = [metrics.event_mentions(caption, vocabulary) for caption in truth]

        def table(texts) -> np.ndarray:
            """(N,3): events in both captions, in this one, in the true one."""
            mentioned = [metrics.event_mentions(text or "", vocabulary) for text in texts]
            counts = [(len(m & t), len(m), len(t)) for m, t in zip(mentioned, events)]
            return np.array(counts, float)
        ours = table(captions)
        other = None if shifted is None else table(shifted)

        # CIDEr stands last, below precision and recall of events.
        references = [[caption] for caption in truth]
        scores = [measure("CIDEr", metrics.cider(captions, references),
                          baseline=None if shifted is None else metrics.cider(shifted, references),
                          baseline_name="another clip's caption")]
        for name, column in (("precision", 1), ("recall", 2)):
            each = np.divide(ours[:, 0], ours[:, column], out=np.full(len(ours), np.nan),
                             where=ours[:, column] > 0)
            scores.insert(0, measure(name, ours, share_of(column), other, "another clip's caption",
                                     each=each))
        return scores
