"""Answers -> the nine tasks' scores, with their trivial baselines, sample counts and 95 % intervals.

A score is a statistic over per-sample values (a row of numbers each, NaN where it has no meaning), so that one
bootstrap serves all of them. An answer that cannot be parsed scores zero and is counted. Baselines are computed on the
same samples by the same statistic: what one gets without listening, looking or learning.
"""

import dataclasses
import json
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .classes import class_meant, class_number
from .stages.instruct import Prepared
from .tasks import TASKS, question_type


@dataclass
class Answer:
    """One answered row. masks: (groups,H,W) logits, empty where the answer held none."""
    row: Prepared
    text: str
    masks: Tensor
    parsed: object | None = None

    def __post_init__(self):
        self.parsed = TASKS[self.row.task].parse(self.text)


@dataclass
class Score:
    """One number of the table. `values` is per sample, for the interval; `baseline` and `chance` where they exist."""
    name: str
    value: float
    interval: tuple[float, float]
    n: int
    baseline: float | None = None
    baseline_name: str = ""
    values: list = field(default_factory=list, repr=False)


def _score(name: str, values, statistic=np.nanmean, baseline=None, baseline_name: str = "") -> Score:
    values = np.asarray(values, float)
    low_high = metrics.bootstrap_interval(values, statistic) if len(values) else (float("nan"),) * 2
    base = None if baseline is None else float(baseline if np.isscalar(baseline) else statistic(np.asarray(baseline)))
    return Score(name, float(statistic(values)) if len(values) else float("nan"), low_high, len(values), base,
                 baseline_name, values.tolist())


def score_ave(answers: list[Answer]) -> list[Score]:
    """Per-second accuracy including background; share of right categories and of exact ranges."""
    truth = [(a.row.row["event"], a.row.row["start_time"], a.row.row["end_time"]) for a in answers]
    labels = np.array([metrics.second_labels(t) for t in truth])
    said = np.array([metrics.second_labels(a.parsed) if a.parsed else ["unparsed"] * 10 for a in answers])
    always = np.array([metrics.second_labels((name, 0, 10)) for name, _, _ in truth])
    return [_score("per-second accuracy", metrics.ave_accuracy(said, labels),
                   baseline=metrics.ave_accuracy(always, labels), baseline_name="right event, always 0-10"),
            _score("category", [bool(a.parsed) and a.parsed[0] == t[0] for a, t in zip(answers, truth)]),
            _score("exact range", [bool(a.parsed) and a.parsed[1:] == t[1:] for a, t in zip(answers, truth)])]


def score_avvp(answers: list[Answer]) -> list[Score]:
    """F of audio, visual, audio-visual, Type@AV and Event@AV, in segments and in events."""
    truth = [TASKS["avvp"].parse(a.row.row["label_content"]) for a in answers]
    always = [{kind: [(name, 0, 10) for name, _, _ in events] for kind, events in t.items()} for t in truth]
    table = np.array([metrics.avvp_video(a.parsed, t) for a, t in zip(answers, truth)])       # (n,2,4)
    base = np.array([metrics.avvp_video(b, t) for b, t in zip(always, truth)])
    scores = []
    for k, level in enumerate(("segments", "events")):
        scores.append(_score(f"Type@AV {level}", table[:, k, :3].mean(1), baseline=base[:, k, :3].mean(1),
                             baseline_name="right events, always 0-10"))
        scores += [_score(f"{name} {level}", table[:, k, j], baseline=base[:, k, j])
                   for j, name in enumerate(("A", "V", "AV", "Event@AV"))]
    return scores


def score_arig(answers: list[Answer]) -> list[Score]:
    """cIoU (share of boxes with IoU of at least 0.5), AUC, mean IoU. Baseline: a box of 90 pixels in the middle."""
    truth = [a.row.box for a in answers]
    iou = metrics.box_iou([a.parsed or (0, 0, 0, 0) for a in answers], truth)
    centre = metrics.box_iou([(67, 67, 157, 157)] * len(truth), truth)
    return [_score("cIoU", iou, metrics.ciou, centre, "centre box"), _score("AUC", iou, metrics.success_auc, centre),
            _score("mean IoU", iou, baseline=centre)]


def _first_mask(answer: Answer) -> Tensor:
    """The union of an answer's masks as logits (H,W); nothing where it held none."""
    return answer.masks.amax(0) if len(answer.masks) else torch.full(answer.row.masks.shape[-2:], -10.0)


def _visible(answers: list[Answer]) -> Tensor | None:
    """(n,H,W) class maps of all that is visible, where the data set knows it for every row."""
    visible = [a.row.visible for a in answers]
    return None if any(v is None for v in visible) else torch.stack(visible)


def score_masks(answers: list[Answer]) -> list[Score]:
    """mIoU and F over masks that are not empty; the null score S over those that are."""
    null, full = ([a for a in answers if bool(a.row.masks.any()) == there] for there in (False, True))
    scores = []
    if full:
        logits, target = torch.stack(list(map(_first_mask, full))), torch.stack([a.row.masks.amax(0) for a in full])
        visible = _visible(full)
        base = None if visible is None else (visible > 0).float()
        scores = [_score("mIoU", metrics.mask_iou(logits, target), np.nanmean,
                         None if base is None else metrics.mask_iou(base, target), "all visible objects"),
                  _score("F", metrics.f_curve(logits, target), metrics.max_f,
                         None if base is None else metrics.f_curve(20 * base - 10, target))]
    if null:
        visible = _visible(null)
        scores.append(_score("S (null, lower is better)", metrics.null_score(torch.stack(list(map(_first_mask, null)))),
                             baseline=None if visible is None else metrics.null_score((visible > 0).float())))
    return scores


def class_map(answer: Answer) -> Tensor:
    """(H,W): the classes an AVSS answer names, painted with their masks; the larger logit wins where they overlap."""
    size = answer.row.masks.shape[-2:]
    said, best = torch.zeros(size, dtype=torch.long), torch.zeros(size)
    for words, logits in zip(answer.parsed or [], answer.masks):
        number = class_meant(words, answer.row.classes)
        if number is not None:
            wins = logits > best
            said[wins], best = number, torch.where(wins, logits, best)
    return said


def score_avss(answers: list[Answer]) -> list[Score]:
    """mIoU and F over classes, background included (class 0)."""
    classes = answers[0].row.classes
    target = torch.zeros(len(answers), *answers[0].row.masks.shape[-2:], dtype=torch.long)
    for k, a in enumerate(answers):
        for name, mask in zip(a.row.row["a_obj"].split(","), a.row.masks):
            target[k][mask] = class_number(name, classes)
    said = torch.stack([class_map(a) for a in answers])
    visible = _visible(answers)
    base = (None, None) if visible is None else metrics.class_iou_f(visible, target, len(classes))
    return [_score(name, values, metrics.class_mean, b, "all visible, true labels")
            for name, values, b in zip(("mIoU", "F"), metrics.class_iou_f(said, target, len(classes)), base)]


def score_avqa(answers: list[Answer]) -> list[Score]:
    """Exact match, in all and by question type; baseline: always the type's most frequent answer."""
    kinds = [" ".join(question_type(a.row.row)) for a in answers]
    truth = [a.row.row["answer"].lower() for a in answers]
    right = np.array([a.parsed == t for a, t in zip(answers, truth)], float)
    usual = {k: max(set(of := [t for t, kind in zip(truth, kinds) if kind == k]), key=of.count) for k in set(kinds)}
    base = np.array([t == usual[k] for t, k in zip(truth, kinds)], float)
    scores = [_score("exact match", right, baseline=base, baseline_name="each type's most frequent answer")]
    for kind in sorted(usual):
        at = [k == kind for k in kinds]
        scores.append(_score(kind, right[at], baseline=base[at]))
    return scores


def score_avcap(answers: list[Answer], vocabulary: list[str]) -> list[Score]:
    """Recall and precision of mentioned events, and CIDEr. Baseline: the caption of the next clip."""
    truth = [a.row.row["label_content"] for a in answers]
    said = [a.parsed for a in answers]

    def table(captions):
        mentioned = [metrics.event_mentions(c or "", vocabulary) for c in captions]
        true = [metrics.event_mentions(c, vocabulary) for c in truth]
        return np.array([(len(m & t), len(m), len(t)) for m, t in zip(mentioned, true)], float)
    ours, other = table(said), table(truth[1:] + truth[:1])
    references = [[t] for t in truth]
    return [_score("recall", ours, lambda v: v[:, 0].sum() / max(v[:, 2].sum(), 1), other, "another clip's caption"),
            _score("precision", ours, lambda v: v[:, 0].sum() / max(v[:, 1].sum(), 1), other),
            _score("CIDEr", metrics.cider(said, references), baseline=metrics.cider(truth[1:] + truth[:1], references))]


SCORES = dict(ave=score_ave, avvp=score_avvp, arig=score_arig, s4=score_masks, ms3=score_masks, ref_avs=score_masks,
              avss=score_avss, avqa=score_avqa)


def score(task: str, answers: list[Answer], vocabulary: list[str]) -> dict:
    """-> {"scores": [Score], "n": rows, "unparsed": answers that could not be read}."""
    scores = score_avcap(answers, vocabulary) if task == "avcap" else SCORES[task](answers)
    return {"scores": scores, "n": len(answers), "unparsed": sum(a.parsed is None for a in answers)}


def as_json(results: dict[str, dict], **facts) -> str:
    """The results and some facts about the run, without the per-sample values."""
    plain = {task: {"n": r["n"], "unparsed": r["unparsed"],
                    "scores": [{k: v for k, v in dataclasses.asdict(s).items() if k != "values"} for s in r["scores"]]}
             for task, r in results.items()}
    return json.dumps({"facts": facts, "results": plain}, indent=1)


def table(results: dict[str, dict]) -> str:
    """The results as a Markdown table, a line a score."""
    lines = ["| task | score | value | 95 % interval | baseline | n | unparsed |", "|---|---|---|---|---|---|---|"]
    for task, result in results.items():
        for s in result["scores"]:
            base = "" if s.baseline is None else f"{s.baseline:.3f}" + (f" ({s.baseline_name})" if s.baseline_name else "")
            lines.append(f"| {task} | {s.name} | {s.value:.3f} | {s.interval[0]:.3f}-{s.interval[1]:.3f} | {base} "
                         f"| {s.n} | {result['unparsed']} |")
    return "\n".join(lines)
