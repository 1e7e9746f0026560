"""Notebook 03: from the waveform to what BEATs sees."""

import math

import torch

from ..exercise import exercise

ROOM = 2e-3  # the log-mel of a quiet bin is sensitive to rounding


@exercise("03", lives="crab_mini.av_uie.log_mel:fbank", points=3)
def fbank(waveform):
    """Kaldi's log-mel as BEATs reads it: waveform (B,S) in [-1,1) at 16 kHz -> (B,F,128), F = 1 +
    (S - 400) // 160.

    Times 2^15; frames of 400 samples every 160. Each frame: minus its mean; minus 0.97 times the
    sample before (the first: itself); times a Hann window (not periodic) to the power 0.85; power
    spectrum of 512 points, without the Nyquist bin; times
    `crab_mini.av_uie.log_mel.mel_banks(device)`; at least 2^-23; natural logarithm; minus 15.41663;
    divided by 2 * 6.55582.
    """
    raise NotImplementedError


def tone(hertz: float, samples: int = 400, level: float = 0.3) -> torch.Tensor:
    """(1,S): a sine."""
    return level * (2 * math.pi * hertz * torch.arange(samples) / 16000).sin()[None]


@fbank.requires(
    "there are 1 + (S - 400) // 160 whole frames of 128 bins", "unfold(1, 400, 160); no padding"
)
def _(trial):
    for samples in (400, 559, 560, 1000):
        found = trial.call(tone(440, samples))
        frames = 1 + (samples - 400) // 160
        trial.expect(
            getattr(found, "shape", None) == (1, frames, 128),
            f"shape (1, {frames}, 128)",
            f"shape {tuple(getattr(found, 'shape', ()))}",
        )


@fbank.requires(
    "twice as loud is ln 4 more before the division",
    "power is the magnitude squared; ln, not log10; over 2 * 6.55582",
)
def _(trial):
    louder = trial.call(tone(440, level=0.4)) - trial.call(tone(440, level=0.2))
    trial.equal(louder[..., 20], torch.full((1, 1), math.log(4) / (2 * 6.55582)), 0.01)


@fbank.requires(
    "silence is the floor, about -2.39",
    "clamp the power to 2^-23 before ln; minus MEAN, over 2 STD",
)
def _(trial):
    trial.agree(torch.zeros(1, 400), tolerance=ROOM)


@fbank.requires(
    "a constant added to the waveform changes nothing",
    "remove the mean of each frame, not of the clip",
)
def _(trial):
    wave = tone(440)
    trial.equal(trial.call(wave + 0.2), trial.call(wave), 0.02)
    steps = torch.cat([wave, wave + 0.3], 1)  # each half is right by itself
    trial.equal(trial.call(steps)[:, 0], trial.call(wave)[:, 0], 0.02)


@fbank.requires("high tones are raised by the pre-emphasis", "x[n] - 0.97 x[n-1], within the frame")
def _(trial):
    balance = trial.call(tone(6000)).amax(-1) - trial.call(tone(300)).amax(-1)
    expected = trial.exercise.original()
    trial.equal(balance, expected(tone(6000)).amax(-1) - expected(tone(300)).amax(-1), 0.02)


@fbank.requires("samples count as 16-bit numbers", "times 2^15 before everything else")
def _(trial):
    wave = tone(1000)
    trial.equal(trial.call(wave).amax(-1), trial.exercise.original()(wave).amax(-1), 0.05)


@fbank.requires(
    "the window is Hann to the power 0.85", "torch.hann_window(400, periodic=False) ** 0.85"
)
def _(trial):
    click = torch.zeros(1, 400)
    click[0, 30] = 0.5
    trial.agree(click, tolerance=ROOM)
    trial.agree(tone(1000), tolerance=0.01)


@fbank.requires("noise, several frames and rows", "all steps together")
def _(trial):
    trial.agree(trial.normal(1, 400, scale=0.1), tolerance=ROOM)
    trial.agree(trial.normal(2, 1200, scale=0.1), tolerance=ROOM)


@exercise("03", lives="crab_mini.model.audio_encoder:fold_mask")
def fold_mask(mask, count):
    """A padding mask (B,n) bool on `count` equal chunks -> (B,count): True where ALL of a chunk is
    padding.

    A chunk has n // count places; what is left over is cut at the end.
    """
    raise NotImplementedError


def bools(text: str) -> torch.Tensor:
    """`0011` -> (1,4) bool."""
    return torch.tensor([[c == "1" for c in text]])


@fold_mask.requires("a chunk that is padding in part is not padding", "all, not any")
def _(trial):
    trial.agree(bools("01"), 1)
    trial.agree(bools("1011"), 1)


@fold_mask.requires("chunks are neighbours", "unflatten to (count, chunk), not (chunk, count)")
def _(trial):
    trial.agree(bools("0011"), 2)
    trial.agree(bools("000011"), 3)


@fold_mask.requires("what is left over is cut at the end", "mask[:, :chunk * count]")
def _(trial):
    trial.agree(bools("110"), 1)
    trial.agree(bools("00111"), 2)
    trial.agree(bools("1100111"), 3)


@fold_mask.requires("rows are folded separately", "the first axis stays")
def _(trial):
    trial.agree(torch.cat([bools("0011"), bools("1100")]), 2)
    trial.agree(trial.normal(3, 11) > -1, 4)


@exercise("03", lives="crab_mini.stages.acoustic_labels:draw_hidden", replaces=False)
def draw_hidden(rows, patches, rng):
    """Which patches of sound are hidden for the masked prediction: (rows, patches) bool, 75 % of
    them in EVERY row.

    rng: a torch.Generator. round(0.75 * patches) places in each row, any of them equally likely.
    """
    raise NotImplementedError


@draw_hidden.requires("it is bool of shape (rows, patches)", "True where a patch is hidden")
def _(trial):
    for shape in ((1, 4), (2, 8)):
        found = trial.call(*shape, trial.rng)
        trial.equal((tuple(found.shape), found.dtype == torch.bool), (shape, True))


@draw_hidden.requires(
    "each row hides exactly round(0.75 * patches)", "choose places, do not toss a coin for each"
)
def _(trial):
    for patches in (4, 8, 48):
        trial.equal(
            trial.call(6, patches, trial.rng).sum(1), torch.full((6,), round(0.75 * patches))
        )


@draw_hidden.requires("rows hide different places", "draw anew for each row")
def _(trial):
    found = trial.call(40, 48, trial.rng)
    trial.expect(
        len(found.unique(dim=0)) > 30,
        "40 rows of which hardly two are alike",
        f"{len(found.unique(dim=0))} different rows",
    )


@draw_hidden.requires("every place is hidden equally often", "no place is preferred")
def _(trial):
    share = trial.call(4000, 8, trial.rng).double().mean(0)
    trial.equal(share, torch.full((8,), 0.75, dtype=torch.float64), 0.03)


@draw_hidden.requires(
    "the generator decides, and only it", "pass generator=rng on: the same seed, the same places"
)
def _(trial):
    def drawn():
        return trial.run(5, 48, torch.Generator().manual_seed(3))

    trial.equal(drawn(), drawn())
    trial.expect(
        bool((drawn() != trial.run(5, 48, torch.Generator().manual_seed(4))).any()),
        "other places for another seed",
        "the same",
    )
