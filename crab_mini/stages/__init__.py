"""The stages of training, each a module with a loss and a deterministic stream of batches: `training.fit` runs them.

    text      the LLM on the world's scripts           (pre-training, no picture, no sound)
    see       the ViT on what the pictures show        (pre-training)
    hear      BEATs on acoustic labels and tags        (pre-training)
    speak     the Q-Formers learn the script's words   (alignment)
    segment   mask decoders, prompted by named objects (alignment)
    align     both interfaces through the frozen LLM   (alignment)
    instruct  all nine tasks, LoRA and interfaces      (instruction tuning)
"""
