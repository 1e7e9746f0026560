"""What can be drawn of a label or of an answer: a record that av_uie/draw.py paints."""

from dataclasses import dataclass, field

from torch import Tensor

Box = tuple[float, float, float, float]         # x0, y0, x1, y1 in pixels of a 224x224 frame
Event = tuple[str, int, int]                    # name, first second, the second after the last


@dataclass
class Drawing:
    """Every part may be absent. H and W may differ from the frame's: both are stretched over it."""
    text: str = ""
    masks: Tensor | None = None                 # (G,H,W) bool
    class_map: Tensor | None = None             # (H,W) int64
    box: Box | None = None
    events: list[Event] = field(default_factory=list)
