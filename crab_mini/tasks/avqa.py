"""AVQA: a question about a clip, answered with a word (paper, section 3; MUSIC-AVQA).

    <answer> two </answer>
"""

import json
import re
from collections import Counter, defaultdict

import numpy as np

from .base import VIDEO, Task
from .score import Answer, Score, measure, most_frequent

FEW = 10            # questions in the same words; a rarer wording is judged with others of its type


def question_type(fields: dict) -> tuple[str, ...]:
    """MUSIC-AVQA's `type`, a JSON list as a string (or a list): usually (modality, kind)."""
    kinds = fields["type"]
    return tuple(json.loads(kinds) if isinstance(kinds, str) else kinds)


def wording(question: str, names: re.Pattern) -> tuple[str, list[str]]:
    """-> (the question with blanks for names and numbers; the names in it)."""
    found = names.findall(question)
    return names.sub("_", re.sub(r"\d+", "_", question)), found


def blind_guesses(kinds: list[str], questions: list[str], truth: list[str],
                  vocabulary: list[str]) -> np.ndarray:
    """Which answers the best guess from the question alone gets right: (N,) of 0 and 1.

    For each wording of a type the best of three: always its most frequent answer, the first or the
    last of the things that the question names (`which is louder, the dog or the bell?`).
    """
    words = sorted({name.lower() for name in (*vocabulary, *truth)}, key=len, reverse=True)
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b")
    posed = [wording(question, pattern) for question in questions]

    # Questions of one type in the same words are judged together.
    wordings = [(kind, text) for kind, (text, _) in zip(kinds, posed)]
    often = Counter(wordings)
    groups = defaultdict(list)
    for k, key in enumerate(wordings):
        groups[key if often[key] >= FEW else key[0]].append(k)

    right = np.zeros(len(truth))
    for members in groups.values():
        usual = most_frequent([truth[k] for k in members])
        guesses = [[usual for k in members]]
        guesses += [[(posed[k][1] or [""])[place] for k in members] for place in (0, -1)]
        hits = [[guess == truth[k] for guess, k in zip(column, members)] for column in guesses]
        right[members] = max(hits, key=sum)
    return right


class AVQA(Task):
    """Audio-visual question answering."""
    name = "avqa"
    fields = {"video_id": "id", "question_id": "id", "type": "types", "question": "text",
              "answer": "text", **VIDEO, "label": "text"}
    identity = ("video_id", "question_id")
    answer_field = "label"
    long_clips = True               # MUSIC-AVQA's last 60 s
    own_options = {"question": "question"}
    alias = "ask"

    def prompt(self, fields: dict) -> str:
        return fields["question"]

    def bare(self, fields: dict) -> str:
        return f"<answer> {fields['answer']} </answer>"

    def parse(self, text: str) -> str | None:
        """The word between the tags, in small letters."""
        found = re.search(r"<answer>\s*([^<\s][^<]*?)\s*</answer>", text)
        return found[1].lower() if found else None

    def differ(self, fields: dict, other: dict) -> bool:
        """The same question with another answer."""
        return fields["question"] == other["question"] and fields["answer"] != other["answer"]

    def score(self, answers: list[Answer], vocabulary: list[str]) -> list[Score]:
        """Exact match, in all and by question type."""
        kinds = [" ".join(question_type(a.sample.fields)) for a in answers]
        truth = [a.sample.fields["answer"].strip().lower() for a in answers]
        right = np.array([a.parsed == t for a, t in zip(answers, truth)], float)

        # The yardsticks: the type's most frequent answer; the best guess from the question alone.
        usual = {kind: most_frequent([t for t, k in zip(truth, kinds) if k == kind])
                 for kind in sorted(set(kinds))}
        base = np.array([t == usual[k] for t, k in zip(truth, kinds)])
        questions = [a.sample.fields["question"].lower() for a in answers]
        blind = blind_guesses(kinds, questions, truth, vocabulary)

        def of(name: str, kind: str | None) -> Score:
            part = np.array([kind in (None, k) for k in kinds])
            return measure(name, np.where(part, right, np.nan), baseline=base,
                           baseline_name="the type's most frequent answer", chance=blind,
                           chance_name="from the question", each=right if kind is None else [])
        return [of("exact match", None), *(of(kind, kind) for kind in usual)]
