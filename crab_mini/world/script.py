"""A scene as a script: what stands in each visual and each audio slot of a second, as counts of
words.

The LLM is pre-trained on scripts, before any encoder exists. Where a clip's sequence will hold the
output of a Q-Former, a script's sequence holds the sum of the embeddings of the words that describe
that slot. So the LLM learns to look facts up in its prefix. Later the Q-Formers learn to produce
what a script would have held.

Each second has CELLS visual slots, one for each quarter of the frame, in reading order. Its words
are the categories of the things whose centre lies in that quarter and the four sides of their
boxes. Each second has VOICES audio slots: the first for the loudest thing, the second for all
others. Every slot also holds a word for its own position. This is not in the paper.
"""

import numpy as np

from ..tasks.base import FRAME
from .scene import SECONDS
from .view import STEP, View

CELLS = 4                                   # visual slots a second, in reading order
VOICES = 2                                  # audio slots a second
SIDES = FRAME // STEP + 1  # positions that a side of a box can have, in steps of STEP pixels


def visual_words(categories: int) -> int:
    """Number of words of the visual slots: one for `empty`, the categories, four sides of a box,
    the CELLS positions.
    """
    return 1 + categories + 4 * SIDES + CELLS


def audio_words(categories: int) -> int:
    """Number of words of the audio slots: one for `silence`, the categories, the VOICES positions.
    """
    return 1 + categories + VOICES


def script(view: View, categories: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """How often each word stands in each slot, as float32: visual (T,CELLS,visual_words), audio
    (T,VOICES,audio_words).

    A side of a box that lies between two positions is shared between their two words, in
    proportion. So nearby boxes have nearby slots.
    """
    word_of = {name: 1 + k for k, name in enumerate(categories)}            # word 0 is `empty`
    visual = np.zeros((SECONDS, CELLS, visual_words(len(categories))), np.float32)
    audio = np.zeros((SECONDS, VOICES, audio_words(len(categories))), np.float32)
    for t in range(SECONDS):
        for i in view.seen(t):
            slot = visual[t, view.quarters[i, t]]
            slot[word_of[view.names[i]]] += 1
            for side, position in enumerate(view.boxes[i, t] * FRAME / STEP):
                # The last whole position has no right neighbour, so the pair begins one before it.
                low = min(int(position), SIDES - 2)
                word = 1 + len(categories) + side * SIDES + low
                slot[word] += 1 - (position - low)
                slot[word + 1] += position - low
        for rank, i in enumerate(view.heard(t)):
            audio[t, min(rank, VOICES - 1), word_of[view.names[i]]] += 1
    # Slots without any word are marked as empty; then every slot gets its position.
    visual[..., 0] = visual.sum(-1) == 0
    audio[..., 0] = audio.sum(-1) == 0
    visual[..., -CELLS:] = np.eye(CELLS)
    audio[..., -VOICES:] = np.eye(VOICES)
    return visual, audio
