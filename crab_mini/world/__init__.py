"""The audio-visual world: scenes drawn from a seed, rendered, and written in the AV-UIE layout."""
