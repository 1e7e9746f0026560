"""The model of the paper's figure 3: encoders, Q-Formers, LLM with LoRA, mask decoders. crab.py puts them together."""
