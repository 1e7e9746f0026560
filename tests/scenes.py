"""Scenes and the annotation rows that they pose, for the tests of what derives from scenes. Nothing is drawn."""

from functools import cache

import numpy as np

from crab_mini.world.scene import sample_scene
from crab_mini.world.view import View
from crab_mini.world.write import POSE


@cache
def views(count: int) -> tuple[View, ...]:
    """The annotator's views of the first training scenes."""
    return tuple(View(sample_scene(seed)) for seed in range(count))


@cache
def rows(task: str, count: int) -> tuple[tuple[View, dict], ...]:
    """(view, row) of every row that `count` scenes pose for a task."""
    rng = np.random.default_rng(5)
    return tuple((view, row) for view in views(count) for row in POSE[task](view, rng))
