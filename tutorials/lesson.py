"""What every notebook imports first: check, using, and matplotlib with the tutorials' colours.

    from lesson import check, plt, using

Imported under this short name because a notebook's kernel runs in the folder tutorials/. Where
something is missing it says in one line what to run, and the notebook stops there.
"""

import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
if str(HOME) not in sys.path:
    sys.path.insert(0, str(HOME))

INSTALL = "pip install -r requirements.txt && pip install -e '.[tutorials]'"
try:
    import torch

    import crab_mini
except ImportError as missing:
    raise SystemExit(
        f"this notebook's kernel ({sys.executable}) has no {missing.name}: run "
        "there, in the folder of "
        f"crab_mini: {INSTALL}"
    ) from None
try:
    import matplotlib
    import matplotlib.pyplot as plt
except ImportError:
    raise SystemExit(f"the tutorials draw with matplotlib: {INSTALL}") from None

from tutorials.check import check, using  # noqa: E402 -- behind the two questions above

__all__ = ["CHECKPOINT", "COLOURS", "check", "checkpoint", "crab_mini", "plt", "using"]

CHECKPOINT = HOME / "runs" / "tiny" / "crab.pt"  # where the recipe leaves a trained model
# Okabe and Ito's colours: told apart by people who see red and green alike, too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")

matplotlib.rcParams.update(
    {
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 75,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "image.interpolation": "nearest",
        "legend.frameon": False,
    }
)
torch.set_num_threads(1)
torch.manual_seed(0)


def checkpoint() -> Path:
    """The trained model's file; stops the notebook in one line where there is none."""
    if not CHECKPOINT.is_file():
        raise SystemExit(
            f"no trained model at {CHECKPOINT.relative_to(HOME)}: run, in the folder of crab_mini: "
            "python train.py --preset tiny --out runs/tiny"
        )
    return CHECKPOINT
