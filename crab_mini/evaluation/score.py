"""Answers of a task -> its scores, its number of samples, and how many answers could not be read.

What a score is stands in tasks/score.py; which scores a task has, in the task's own file. An answer
that cannot be read scores as badly as can be and is counted; official Crab leaves it out.
"""

from ..tasks.base import TASKS
from ..tasks.score import Answer


def score(task: str, answers: list[Answer], vocabulary: list[str]) -> dict:
    """-> {"scores": [Score], "n": samples, "unparsed": answers that could not be read}.

    vocabulary: names of events that a text may mention.
    """
    return {"scores": TASKS[task].score(answers, vocabulary), "n": len(answers),
            "unparsed": sum(answer.parsed is None for answer in answers)}
