"""crab_mini: the Crab audio-visual model (arXiv 2503.13068) from scratch, in miniature, exact and readable.

Shape letters used in every docstring and comment of the project:
B batch · T seconds (one frame each) · P patches · Q queries · L tokens · D width · H attention heads ·
E LoRA heads · R LoRA rank · N rows of a flattened batch · V vocabulary · S waveform samples · F log-mel frames
"""

__version__ = "0.1.0"
