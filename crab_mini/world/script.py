"""A scene as a script: for each second, what stands in each visual and each audio slot, in words instead of pictures.

The language model is pre-trained on scripts: where a clip's prefix will hold a Q-Former's output, a script holds the
sum of the embeddings of the words that describe that slot, its own place among them. One visual slot per quarter of the frame (the things whose
centre is there: category and the four sides of the box), two audio slots (the loudest thing; all others). So the model
learns to look things up before any encoder exists, and alignment has a target: say what the script says.
"""

import numpy as np

from .annotate import FRAME, STEP, View
from .scene import SECONDS

CELLS = 4                                   # visual slots a second, in reading order
VOICES = 2                                  # audio slots a second
SIDES = FRAME // STEP + 1                   # places a side of a box can be at


def visual_words(categories: int) -> int:
    """Size of the visual slots' vocabulary: empty, the categories, four sides of a box, which quarter it is."""
    return 1 + categories + 4 * SIDES + CELLS


def audio_words(categories: int) -> int:
    """Size of the audio slots' vocabulary: silence, the categories, which voice it is."""
    return 1 + categories + VOICES


def script(view: View, categories: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """-> visual (T,CELLS,visual_words) and audio (T,VOICES,audio_words), float32: how often each word is in a slot.

    A side of a box between two places is shared between them, so that nearby boxes have nearby slots.
    """
    index = {name: 1 + k for k, name in enumerate(categories)}
    visual = np.zeros((SECONDS, CELLS, visual_words(len(categories))), np.float32)
    audio = np.zeros((SECONDS, VOICES, audio_words(len(categories))), np.float32)
    for t in range(SECONDS):
        for i in view.seen(t):
            slot = visual[t, view.place[i, t]]
            slot[index[view.names[i]]] += 1
            for side, value in enumerate(view.boxes[i, t] * FRAME / STEP):
                low = min(int(value), SIDES - 2)
                start = 1 + len(categories) + side * SIDES + low
                slot[start] += 1 - (value - low)
                slot[start + 1] += value - low
        for rank, i in enumerate(view.heard(t)):
            audio[t, min(rank, 1), index[view.names[i]]] += 1
    visual[..., 0] = visual.sum(-1) == 0
    audio[..., 0] = audio.sum(-1) == 0
    visual[..., -CELLS:] = np.eye(CELLS)
    audio[..., -VOICES:] = np.eye(VOICES)
    return visual, audio
