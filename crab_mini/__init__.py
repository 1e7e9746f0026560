"""crab_mini: the Crab audio-visual model from scratch, in miniature.

The paper: Du et al., CVPR 2025, arXiv 2503.13068.

The map, in the order in which a clip passes through the folders:

    world/        draws a scene from a seed, writes it as a clip with annotations of nine tasks
    av_uie/       reads a data set: annotations, media, masks; makes log-mels; draws a sample
    tasks/        what each of the nine tasks asks, answers, parses and scores
    tokenizer.py  turns seconds, prompt and answer into ids, with placeholders for the media
    features/     runs the frozen encoders once a clip and keeps what they return
    batch.py      pads sequences to a batch: the one thing that data and model both know
    model/        the paper's figure 3: crab.py joins ViT, BEATs, Q-Formers, LLM, mask decoders
    fused_lora/   the interaction-aware LoRA as one operation: torch, C++ and CUDA
    evaluation/   answers with a trained model, scores the answers and shows them
    metrics/      the formulas of the scores

    stages/       what is trained one after the other: recipe.py lists the seven stages
    training/     the loop that trains a stage, its optimizer, its checkpoints
    pretrained/   published weights in the same classes
    config.py     every number of a run
    options.py    the command line
    errors.py     the errors: each is one line
    files.py      writes a file whole or not at all
    bundle.py     a trained model in one file
    api.py        the same model in five lines of Python

Where to begin: this map. Then model/crab.py: what happens to a clip. Then stages/recipe.py: what
each stage trains. The test tests/test_imports.py fixes which folder may import which.

Letters of shapes, the same in every docstring and comment:

    B batch              T seconds, one frame each     P patches of a frame or of a second of sound
    Q queries            L tokens of a sequence        D width (Dv of vision, Da of audio)
    n attention heads    d width of one head           H, W height and width of a picture in pixels
    h, w patch grid      K layers that are kept        G mask groups
    E LoRA heads         r LoRA rank                   W_r router of the LoRA heads (paper, 3.2)
    V vocabulary         C classes or channels         N rows without an order between them, such as
    S sound samples      F log-mel frames                all seconds of a batch one after the other

L_kv counts the keys of an attention, n_kv its heads of keys. A file that needs another letter says
so at its top.
"""

__version__ = "0.2.0"


def load(path, **options):
    """A trained model that answers questions about a clip: see `crab_mini.api.load`."""
    from .api import load as load_model  # here, so that `import crab_mini` alone stays quick
    return load_model(path, **options)
