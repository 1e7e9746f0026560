"""The stages of training, each a module with a loss and a deterministic stream of batches: `training.fit` runs them.

    text      the LLM on narrated scripts              (pre-training, no picture, no sound)
    see       the ViT on what the pictures show        (pre-training)
    hear      BEATs on acoustic labels and tags        (pre-training)
    speak     the Q-Formers learn the script's words   (alignment)
    segment   mask decoders, prompted by named things  (alignment)
    align     narration through the frozen LLM         (alignment)
    instruct  all nine tasks: LoRA, added rows, interfaces (instruction tuning)
"""
