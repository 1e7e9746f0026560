"""Scores as Markdown tables, as JSON, and as one JSON line a sample."""

import dataclasses
import json
import math

from ..tasks.base import TASKS
from ..tasks.score import Answer, Score

SHUFFLED = {"audio": "sound shuffled", "video": "pictures shuffled", "both": "both shuffled"}


def number_text(value: float | None) -> str:
    """A number with three digits after the point; nothing for None."""
    return "" if value is None else f"{value:.3f}"


def markdown(rows: list[list]) -> str:
    """Rows of cells, the heads first, as a Markdown table whose columns line up as plain text."""
    cells = [[str(cell) for cell in row] for row in rows]
    wide = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, wide)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in wide) + "|", *lines[1:]])


def score_text(score: Score) -> str:
    """The name of a score, and whether lower is better."""
    return score.name + ", lower is better" * score.lower


def yardsticks(results: dict[str, dict]) -> str:
    """What the columns `chance` and `baseline` hold, a line a task."""
    lines = []
    for task, result in results.items():
        named = {}
        for score in result["scores"]:
            for kind in ("chance", "baseline"):
                if getattr(score, kind) is not None:
                    named.setdefault((kind, getattr(score, kind + "_name")), score.name)
        words = [f"{kind} ({score}): {name}" for (kind, name), score in named.items()]
        lines.append(f"{task}: " + "; ".join(words))
    return "\n".join(lines)


def table(results: dict[str, dict]) -> str:
    """The results, a line a score, and below them what the yardsticks are."""
    rows = [["task", "score", "value", "95 % interval", "chance", "baseline", "n", "unparsed"]]
    for task, result in results.items():
        for s in result["scores"]:
            interval = f"{s.interval[0]:.3f}-{s.interval[1]:.3f}"
            rows.append([task, score_text(s), number_text(s.value), interval, number_text(s.chance),
                         number_text(s.baseline), s.n, result["unparsed"]])
    return f"{markdown(rows)}\n\n{yardsticks(results)}"


def comparison(results: dict[str, dict], shuffled: dict[str, dict]) -> str:
    """The results beside those with another clip's sound, pictures or both, and the yardsticks.

    shuffled: {"audio": results, ...}. With `both` among them a last line names what is still better
    than chance.
    """
    # The table: a line a score.
    heads = [SHUFFLED[how] for how in shuffled]
    rows = [["task", "score", "as it is", *heads, "chance", "baseline", "n"]]
    for task, result in results.items():
        for k, s in enumerate(result["scores"]):
            others = [number_text(found[task]["scores"][k].value) for found in shuffled.values()]
            rows.append([task, score_text(s), number_text(s.value), *others,
                         number_text(s.chance), number_text(s.baseline), s.n])
    text = f"{markdown(rows)}\n\n{yardsticks(results)}"

    # With both exchanged nothing of the clip is left, so no score should lie above its yardsticks.
    if "both" in shuffled:
        known = [f"{task} {s.name} {s.value:.3f}" for task, result in shuffled["both"].items()
                 for s in result["scores"] if knows(s)]
        text += "\n\nboth shuffled: "
        if known:
            text += "better than chance and baseline: " + ", ".join(known)
        else:
            text += "no score is better than chance or its baseline"
    return text


def knows(score: Score) -> bool:
    """Whether a score lies above both of its yardsticks, with its whole interval.

    Never for scores that are better when lower: an empty mask needs no knowledge.
    """
    known = [value for value in (score.chance, score.baseline) if value is not None]
    return not score.lower and bool(known) and score.interval[0] > max(known)


def plain(value):
    """For JSON, which knows neither NaN nor arrays."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def results_dict(results: dict[str, dict]) -> dict:
    """The results as plain values, without what each sample got."""
    made = {}
    for task, result in results.items():
        scores = [dataclasses.asdict(score) for score in result["scores"]]
        for score in scores:
            del score["each"]
        made[task] = {"n": result["n"], "unparsed": result["unparsed"], "scores": scores}
    return made


def as_json(results: dict[str, dict], shuffled: dict[str, dict] | None = None, **facts) -> str:
    """The results and some facts about the run, without the per-sample values."""
    content = {"facts": facts, "results": results_dict(results)}
    if shuffled:
        content["shuffled"] = {how: results_dict(found) for how, found in shuffled.items()}
    return json.dumps(plain(content), indent=1)


def lines(answers: list[Answer], result: dict, shuffle: str | None = None) -> list[str]:
    """One JSON line for each answer of a task: what was asked, answered, read, true and scored."""
    out = []
    for k, answer in enumerate(answers):
        sample = answer.sample
        task = TASKS[sample.task]
        scores = {s.name: float(s.each[k]) for s in result["scores"] if len(s.each)}
        content = dict(task=sample.task, uid=sample.uid, shuffle=shuffle,
                       prompt=task.prompt(sample.fields), answer=answer.text, parsed=answer.parsed,
                       truth=task.truth(sample.fields), scores=scores)
        out.append(json.dumps(plain(content), ensure_ascii=False))
    return out
