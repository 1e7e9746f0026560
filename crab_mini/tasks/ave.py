"""AVE: which event is both seen and heard, and from when to when (paper, section 3; AVE-ECCV18).

    <event> dog </event> ... <range> 2,6 </range>
"""

import re

import numpy as np

from .. import metrics
from ..errors import DataError
from .base import VIDEO, Task
from .drawing import Drawing, Event
from .score import Answer, Score, listed_names, measure, most_frequent, same_name

RANGE = re.compile(r"<range>\s*(\d+)\s*,\s*(\d+)\s*</range>")
DIGITS = 9                  # of a number are read: Python itself refuses thousands


def seconds_in(span: re.Match) -> tuple[int, int]:
    """(start, end) of a match of RANGE."""
    return int(span[1][:DIGITS]), int(span[2][:DIGITS])


class AVE(Task):
    """Audio-visual event localisation."""
    name = "ave"
    fields = {"vid": "id", "event": "text", "start_time": "second", "end_time": "second", **VIDEO,
              "label_content": "text"}
    identity = ("vid", "event")

    def check_meaning(self, fields: dict, place: str) -> None:
        """The event ends after it starts, and the range in the label is the one in the keys."""
        start, end = fields["start_time"], fields["end_time"]
        if start >= end:
            raise DataError(place, "end_time", f"{end} is not after start_time {start}")
        span = RANGE.search(fields["label_content"])
        if span and seconds_in(span) != (start, end):
            raise DataError(place, "label_content",
                            "mislabelled: the range {},{} is not {},{}".format(
                                *seconds_in(span), start, end))

    def events(self, fields: dict) -> list[Event]:
        """The one event."""
        return [(fields["event"], fields["start_time"], fields["end_time"])]

    def prompt(self, fields: dict) -> str:
        return "which event is both seen and heard, and from when to when?"

    def bare(self, fields: dict) -> str:
        return (f"<event> {fields['event']} </event> "
                f"<range> {fields['start_time']},{fields['end_time']} </range>")

    def parse(self, text: str) -> Event | None:
        """(event, start, end) in seconds."""
        event, span = re.search(r"<event>\s*(.+?)\s*</event>", text), RANGE.search(text)
        if not event or not span or seconds_in(span)[0] > seconds_in(span)[1]:
            return None
        return event[1], *seconds_in(span)

    def names(self, fields: dict) -> set[str]:
        return listed_names(fields["event"])

    def picture(self, answer: Answer) -> Drawing:
        return Drawing(answer.text, events=[answer.parsed] if answer.parsed else [])

    def score(self, answers: list[Answer], vocabulary: list[str]) -> list[Score]:
        """Per-second accuracy with background; share of right categories and of exact ranges."""
        truth = [(same_name(name), start, end) for a in answers
                 for name, start, end in self.events(a.sample.fields)]
        predicted = [(same_name(a.parsed[0]), *a.parsed[1:]) if a.parsed else None for a in answers]

        # Labels of each second, (N,10) each; an unreadable answer is wrong in every second.
        labels = np.array([metrics.second_labels(t) for t in truth])
        seconds = np.array([metrics.second_labels(p) if p else ["unparsed"] * 10
                            for p in predicted])

        # The yardsticks: the right event at all times; what is most frequent, whatever the clip.
        always = np.array([metrics.second_labels((name, 0, 10)) for name, _, _ in truth])
        constant = np.array([most_frequent(column.tolist()) for column in labels.T])
        name, span = most_frequent([t[0] for t in truth]), most_frequent([t[1:] for t in truth])
        return [
            measure("per-second accuracy", metrics.ave_accuracy(seconds, labels),
                    baseline=metrics.ave_accuracy(always, labels),
                    baseline_name="right event, always 0-10",
                    chance=(constant == labels).mean(1),
                    chance_name="each second's most frequent label"),
            measure("category", [bool(p) and p[0] == t[0] for p, t in zip(predicted, truth)],
                    chance=[t[0] == name for t in truth], chance_name="the most frequent event"),
            measure("exact range", [bool(p) and p[1:] == t[1:] for p, t in zip(predicted, truth)],
                    chance=[t[1:] == span for t in truth], chance_name="the most frequent range")]
