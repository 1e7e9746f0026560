"""AVVP: every event that is heard and every event that is seen, with spans (paper, section 3; LLP).

    <audio_event> dog,(2 6),(8 9) </audio_event> <visual_event> dog,(0 10) </visual_event>
"""

import re

import numpy as np

from .. import metrics
from ..errors import DataError
from .base import VIDEO, Task
from .drawing import Drawing, Event
from .fields import CLIP_SECONDS, shortened
from .score import Answer, Score, listed_names, measure, most_frequent, same_name

SPAN = re.compile(r"\(\s*(\d{1,3})[\s,]+(\d{1,3})\s*\)")    # (3 6): the start of each second
NOTHING = ("no audio event", "no visual event")             # words of an answer that lists none
SENSES = {"visual": "see", "audio": "hear"}                 # how drawn events and labels are marked
COLUMNS = {"Type@AV": (0, 1, 2), "A": (0,), "V": (1,), "AV": (2,), "Event@AV": (3,)}


def tagged_events(text: str) -> list[tuple[str, str]]:
    """(audio or visual, what stands between the tags) of every event in a text."""
    return re.findall(r"<(audio|visual)_event>(.*?)</\1_event>", text, re.S)


def name_and_spans(inner: str) -> tuple[str, list[tuple[int, int]]]:
    """`dog,(2 6),(7 8)`, what stands between tags -> (dog, [(2, 6), (7, 8)]), in seconds."""
    first = SPAN.search(inner)
    name = inner[:first.start()] if first else inner
    spans = [(int(start), int(end)) for start, end in SPAN.findall(inner)]
    return name.strip().rstrip(",").rstrip(), spans


def comparable(parsed: dict | None) -> dict | None:
    """Parsed events with their names in the form in which names are compared."""
    return parsed and {sense: [(same_name(name), start, end) for name, start, end in parsed[sense]]
                       for sense in ("audio", "visual")}


class AVVP(Task):
    """Audio-visual video parsing."""
    name = "avvp"
    fields = {"vid": "id", "filename": "id", "event": "text or list", **VIDEO,
              "label_content": "text"}
    identity = ("filename",)

    def check_meaning(self, fields: dict, place: str) -> None:
        """Each pair of tags holds a name and spans such as (3 6), inside the clip."""
        text, key = fields["label_content"], "label_content"
        for tag in ("visual_event", "audio_event"):
            # Every opening tag has its closing one.
            inner = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
            if not len(inner) == text.count(f"<{tag}>") == text.count(f"</{tag}>"):
                raise DataError(place, key, f"mislabelled: <{tag}> tags do not pair up")
            # Between them stand a name and its spans.
            for event in inner:
                name, spans = name_and_spans(event)
                inside = all(start < end <= CLIP_SECONDS for start, end in spans)
                if not name or not spans or not inside:
                    raise DataError(place, key, f"mislabelled: {shortened(event)} needs a name and "
                                                f"spans (start end) within 0..{CLIP_SECONDS}")
        # A text without tags has to say that there is nothing to list.
        if "_event>" not in text and not any(words in text for words in NOTHING):
            raise DataError(place, key, "mislabelled: no <visual_event> or <audio_event>")

    def events(self, fields: dict) -> list[Event]:
        """Every span of every event; names begin with "see " or "hear "."""
        return [(f"{SENSES[sense]} {name}", start, end)
                for sense, inner in tagged_events(fields["label_content"])
                for name, spans in [name_and_spans(inner)] for start, end in spans]

    def event_names(self, fields: dict) -> set[str]:
        """The names without "see " and "hear "."""
        return {name.partition(" ")[2] for name, _, _ in self.events(fields)}

    def prompt(self, fields: dict) -> str:
        return "list every event that is heard and every event that is seen, with their times."

    def bare(self, fields: dict) -> str:
        tagged = tagged_events(fields["label_content"])
        return " ".join(f"<{sense}_event>{inner}</{sense}_event>" for sense, inner in tagged) \
            or " ".join(NOTHING)

    def parse(self, text: str) -> dict[str, list[Event]] | None:
        """{"audio": [(name, start, end)], "visual": [...]} in seconds."""
        events, tagged = {"audio": [], "visual": []}, tagged_events(text)
        for sense, inner in tagged:
            name, spans = name_and_spans(inner)
            events[sense] += [(name, start, end) for start, end in spans]
        return events if tagged or any(words in text for words in NOTHING) else None

    def names(self, fields: dict) -> set[str]:
        return listed_names(fields["event"])

    def picture(self, answer: Answer) -> Drawing:
        events = [(f"{verb} {name}", start, end) for sense, verb in SENSES.items()
                  for name, start, end in (answer.parsed or {sense: []})[sense]]
        return Drawing(answer.text, events=events)

    def score(self, answers: list[Answer], vocabulary: list[str]) -> list[Score]:
        """F of audio, visual, audio-visual, Type@AV and Event@AV, in segments and in events."""
        truth = [comparable(self.parse(a.sample.fields["label_content"])) for a in answers]
        predicted = [comparable(a.parsed) for a in answers]

        # The yardsticks: the right events at all times; the most frequent events at all times.
        always = [{sense: [(name, 0, CLIP_SECONDS) for name, _, _ in events]
                   for sense, events in t.items()} for t in truth]
        usual = {}
        for sense in ("audio", "visual"):
            names = [name for t in truth for name in sorted({event[0] for event in t[sense]})]
            usual[sense] = [(most_frequent(names), 0, CLIP_SECONDS)] if names else []

        tables = []
        for events in (predicted, always, [usual] * len(truth)):
            tables.append(np.array([metrics.avvp_video(p, t) for p, t in zip(events, truth)]))
        scores = []                                                     # tables: (N,2,4) each
        for k, level in enumerate(("segments", "events")):
            for name, columns in COLUMNS.items():
                ours, trick, blind = (table[:, k, columns].mean(1) for table in tables)
                scores.append(measure(
                    f"{name} {level}", ours, baseline=trick,
                    baseline_name="right events, always 0-10", chance=blind,
                    chance_name="the most frequent events, always 0-10"))
        return scores
