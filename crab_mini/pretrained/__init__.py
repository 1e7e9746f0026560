"""Published weights (CLIP, BEATs, LLaMA, SAM, Crab's LoRA) in this project's own classes."""
