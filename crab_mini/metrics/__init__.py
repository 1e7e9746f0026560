"""The scores of the nine tasks: pure functions of arrays, lists and, for masks, tensors.

A function of items returns one number for each; a function of a set returns one number or a dict.
The program uses functions of items, because their means get an interval. `exact_match`,
`mention_scores`, `avvp_scores`, `ciou` and `f_measure` give the score of a whole set in one call.
An answer that could not be read is None and scores zero. This folder imports nothing of ours. Where
official Crab computes a different number, it is in official.py, which only the tests use.
"""

from .bootstrap import bootstrap_interval
from .boxes import box_iou, ciou, success_auc, success_curve
from .captions import cider, event_mentions, exact_match, mention_scores
from .events import ave_accuracy, avvp_scores, avvp_video, runs, second_labels, video_f
from .masks import (
    class_iou_f,
    class_mean,
    f_curve,
    f_measure,
    f_measure_at_half,
    frame_mean,
    mask_iou,
    max_f,
    null_score,
    precision_recall,
)

__all__ = [
    "ave_accuracy", "avvp_scores", "avvp_video", "bootstrap_interval", "box_iou", "cider", "ciou",
    "class_iou_f", "class_mean", "event_mentions", "exact_match", "f_curve", "f_measure",
    "f_measure_at_half", "frame_mean", "mask_iou", "max_f", "mention_scores", "null_score",
    "precision_recall", "runs", "second_labels", "success_auc", "success_curve", "video_f"]
