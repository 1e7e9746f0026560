"""The training loop and what it needs: optimizer, progress line, processes, checkpoints."""
