"""The nine tasks. A task is one file: annotation, prompt, answer, parser, rules, score, picture.

    from crab_mini.tasks import TASKS
    TASKS["ave"].prompt(fields)         # what the model is asked about an annotation

Importing this package registers the nine in the order in which they are listed everywhere. A tenth
registers itself from a file of the user's own (`--plugin FILE`, see data/README.md).
"""

from .arig import ARIG
from .avcap import AVCap
from .ave import AVE
from .avqa import AVQA
from .avvp import AVVP
from .base import TASKS, Task, load_plugin, parse_tasks, register
from .masks import AVSS, MS3, S4, RefAVS
from .score import Answer, Score, measure, most_frequent

for task in (AVE(), AVVP(), ARIG(), S4(), MS3(), AVSS(), RefAVS(), AVQA(), AVCap()):
    register(task)

__all__ = ["TASKS", "Answer", "Score", "Task", "load_plugin", "measure", "most_frequent",
           "parse_tasks", "register"]
