"""Answers -> the nine tasks' scores, each with its chance level, its trivial baseline, n and a 95 % interval.

A score is a statistic over per-sample values, so that one bootstrap serves all of them. An answer that cannot be
parsed scores as badly as can be and is counted. Two yardsticks are computed on the same samples by the same statistic:
`chance`, the best that one constant answer gets without seeing, hearing or learning anything (of questions: without
anything but the question), and `baseline`, a trick that knows part of the truth, such as the right event at all times.
Masks are compared at the model's resolution. The segmentation tasks are in mask_scoring.py.
"""

import re
from collections import Counter, defaultdict

import numpy as np

from .. import metrics
from ..tasks.base import TASKS, question_type
from .mask_scoring import class_map, score_avss, score_masks
from .score import Answer, Score, measure

__all__ = ["NAMING", "SCORES", "Answer", "Score", "class_map", "measure", "score"]

FEW = 10                    # questions in the same words; a rarer wording is judged with the others of its type
CANDIDATES = 500            # boxes among which the best constant one is looked for


def same(name: str) -> str:
    """A name as names are compared: without case, underscores and double blanks."""
    return " ".join(name.lower().replace("_", " ").split())


def most_frequent(things: list):
    """The commonest of some things (the first to reach that count)."""
    return Counter(things).most_common(1)[0][0]


def score_ave(answers: list[Answer]) -> list[Score]:
    """Per-second accuracy including background; share of right categories and of exact ranges."""
    truth = [(same(a.row.row["event"]), a.row.row["start_time"], a.row.row["end_time"]) for a in answers]
    said = [(same(a.parsed[0]), *a.parsed[1:]) if a.parsed else None for a in answers]
    labels = np.array([metrics.second_labels(t) for t in truth])                                # (n,10)
    seconds = np.array([metrics.second_labels(s) if s else ["unparsed"] * 10 for s in said])
    always = np.array([metrics.second_labels((name, 0, 10)) for name, _, _ in truth])
    constant = np.array([most_frequent(column.tolist()) for column in labels.T])
    name, span = most_frequent([t[0] for t in truth]), most_frequent([t[1:] for t in truth])
    return [measure("per-second accuracy", metrics.ave_accuracy(seconds, labels),
                    baseline=metrics.ave_accuracy(always, labels), baseline_name="right event, always 0-10",
                    chance=(constant == labels).mean(1), chance_name="each second's most frequent label"),
            measure("category", [bool(s) and s[0] == t[0] for s, t in zip(said, truth)],
                    chance=[t[0] == name for t in truth], chance_name="the most frequent event"),
            measure("exact range", [bool(s) and s[1:] == t[1:] for s, t in zip(said, truth)],
                    chance=[t[1:] == span for t in truth], chance_name="the most frequent range")]


def _events(parsed: dict | None) -> dict | None:
    return parsed and {kind: [(same(name), a, b) for name, a, b in parsed[kind]] for kind in ("audio", "visual")}


def score_avvp(answers: list[Answer]) -> list[Score]:
    """F of audio, visual, audio-visual, Type@AV and Event@AV, in segments and in events."""
    truth = [_events(TASKS["avvp"].parse(a.row.row["label_content"])) for a in answers]
    always = [{kind: [(name, 0, 10) for name, _, _ in events] for kind, events in t.items()} for t in truth]
    names = {kind: [name for t in truth for name in sorted({e[0] for e in t[kind]})] for kind in ("audio", "visual")}
    usual = {kind: [(most_frequent(found), 0, 10)] if found else [] for kind, found in names.items()}
    said = [_events(a.parsed) for a in answers]
    table, base, constant = (np.array([metrics.avvp_video(s, t) for s, t in zip(what, truth)])       # (n,2,4)
                             for what in (said, always, [usual] * len(truth)))
    scores = []
    for k, level in enumerate(("segments", "events")):
        parts = {"Type@AV": (0, 1, 2), "A": (0,), "V": (1,), "AV": (2,), "Event@AV": (3,)}
        for name, columns in parts.items():
            ours, trick, blind = (t[:, k, columns].mean(1) for t in (table, base, constant))
            scores.append(measure(f"{name} {level}", ours, baseline=trick, baseline_name="right events, always 0-10",
                                  chance=blind, chance_name="the most frequent events, always 0-10"))
    return scores


def score_arig(answers: list[Answer]) -> list[Score]:
    """cIoU (share of boxes with IoU of at least 0.5), AUC, mean IoU. Baseline: a box of 90 pixels in the middle."""
    truth = np.array([a.row.box for a in answers])
    read = np.array([a.parsed is not None for a in answers])
    iou = metrics.box_iou([a.parsed or (0, 0, 0, 0) for a in answers], truth)

    def constant(box) -> np.ndarray:
        return metrics.box_iou([box] * len(truth), truth)
    centre = constant((67, 67, 157, 157))
    boxes = [constant(box) for box in truth[:CANDIDATES]]

    def score(name: str, each) -> Score:
        return measure(name, each(iou) * read, baseline=each(centre), baseline_name="centre box",
                       chance=max(map(each, boxes), key=np.mean), chance_name="the best constant box")
    return [score("cIoU", lambda x: x >= 0.5), score("mean IoU", lambda x: x),
            score("AUC", lambda x: np.array([metrics.success_auc([v]) for v in x]))]


def _named(question: str, names: re.Pattern) -> tuple[str, list[str]]:
    """-> (the question's wording, with blanks for names and numbers; the names in it)."""
    found = names.findall(question)
    return names.sub("_", re.sub(r"\d+", "_", question)), found


def blind_guesses(kinds: list[str], questions: list[str], truth: list[str], vocabulary: list[str]) -> np.ndarray:
    """Which answers the best guess from the question alone gets right: (n,) of 0 and 1.

    For each wording of a type the best of three: always its most frequent answer, the first or the last of the things
    that the question names (`which is louder, the dog or the bell?`).
    """
    words = sorted({name.lower() for name in (*vocabulary, *truth)}, key=len, reverse=True)
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b")
    posed = [_named(question, pattern) for question in questions]
    wordings = [(kind, wording) for kind, (wording, _) in zip(kinds, posed)]
    often = Counter(wordings)
    groups = defaultdict(list)
    for k, wording in enumerate(wordings):
        groups[wording if often[wording] >= FEW else wording[0]].append(k)
    right = np.zeros(len(truth))
    for members in groups.values():
        usual = most_frequent([truth[k] for k in members])
        guesses = [[usual for k in members], *([(posed[k][1] or [""])[at] for k in members] for at in (0, -1))]
        right[members] = max(([guess == truth[k] for guess, k in zip(g, members)] for g in guesses), key=sum)
    return right


def score_avqa(answers: list[Answer], vocabulary: list[str]) -> list[Score]:
    """Exact match, in all and by question type; baseline: always the type's most frequent answer."""
    kinds = [" ".join(question_type(a.row.row)) for a in answers]
    truth = [a.row.row["answer"].strip().lower() for a in answers]
    right = np.array([a.parsed == t for a, t in zip(answers, truth)], float)
    usual = {kind: most_frequent([t for t, k in zip(truth, kinds) if k == kind]) for kind in sorted(set(kinds))}
    base = np.array([t == usual[k] for t, k in zip(truth, kinds)])
    blind = blind_guesses(kinds, [a.row.row["question"].lower() for a in answers], truth, vocabulary)

    def of(name: str, kind: str | None) -> Score:
        part = np.array([kind in (None, k) for k in kinds])
        return measure(name, np.where(part, right, np.nan), baseline=base, chance=blind, chance_name="from the question",
                       baseline_name="the type's most frequent answer", each=right if kind is None else [])
    return [of("exact match", None), *(of(kind, kind) for kind in usual)]


def _pooled(over: int):
    """Share of hits: a statistic of rows (hits, said, there); NaN where there is nothing to share."""
    def share(rows: np.ndarray) -> float:
        return rows[:, 0].sum() / rows[:, over].sum() if rows[:, over].sum() else float("nan")
    return share


def score_avcap(answers: list[Answer], vocabulary: list[str]) -> list[Score]:
    """Recall and precision of mentioned events, and CIDEr. Baseline: the caption of the next clip."""
    truth = [TASKS["avcap"].bare(a.row.row) for a in answers]
    said, references = [a.parsed for a in answers], [[t] for t in truth]
    events = [metrics.event_mentions(t, vocabulary) for t in truth]

    def table(captions) -> np.ndarray:
        mentioned = [metrics.event_mentions(caption or "", vocabulary) for caption in captions]
        return np.array([(len(m & t), len(m), len(t)) for m, t in zip(mentioned, events)], float)     # (n,3)
    ours, other, shifted = table(said), None, truth[1:] + truth[:1]
    if len(truth) > 1:
        other = table(shifted)
    scores = [measure("CIDEr", metrics.cider(said, references), baseline_name="another clip's caption",
                      baseline=None if other is None else metrics.cider(shifted, references))]
    for name, over in (("precision", 1), ("recall", 2)):
        each = np.divide(ours[:, 0], ours[:, over], out=np.full(len(ours), np.nan), where=ours[:, over] > 0)
        scores.insert(0, measure(name, ours, _pooled(over), other, "another clip's caption", each=each))
    return scores


SCORES = dict(ave=score_ave, avvp=score_avvp, arig=score_arig, s4=score_masks, ms3=score_masks, ref_avs=score_masks,
              avss=score_avss)
NAMING = dict(avqa=score_avqa, avcap=score_avcap)      # those that look for names of events in texts


def score(task: str, answers: list[Answer], vocabulary: list[str]) -> dict:
    """-> {"scores": [Score], "n": rows, "unparsed": answers that could not be read}. vocabulary: names of events."""
    scores = NAMING[task](answers, vocabulary) if task in NAMING else SCORES[task](answers)
    return {"scores": scores, "n": len(answers), "unparsed": sum(a.parsed is None for a in answers)}
