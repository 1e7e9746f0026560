"""What is trained one after the other. `recipe.py` lists the seven stages: begin there.

    recipe           the stages: what each trains, from what, and what stays frozen
    text             pre-training of the LLM on scripts of scenes
    encoders         pre-training of ViT and BEATs on single frames and seconds of sound
    acoustic_labels  BEATs' own pre-training task
    interfaces       alignment of Q-Formers and mask decoders; the whole model
    rows, clips      the sequences, batches and features that they learn from

A stage is a module with `losses(batch) -> {part: (sum, count)}` and batches with `at(step)` and
`ids(step)`. `training.loop.fit` trains it.
"""
