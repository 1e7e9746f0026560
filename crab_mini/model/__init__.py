"""Crab: two encoders, two Q-Formers, an LLM with interaction-aware LoRA, mask decoders.

Begin with crab.py. Each part has a file of its own and can be read alone.
"""
