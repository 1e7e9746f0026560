# %% [markdown]
# # 02 The world: where does truth come from?
#
# A model is only as good as what it is told. AVE, AVVP and MUSIC-AVQA tell by hand: people watched
# clips and wrote down when something is seen and heard. The paper (section 3) adds *explicit
# reasoning* to such labels. In this miniature nobody watches: a **scene** is drawn from a seed, and
# picture, sound, label and reasoning all follow from it. So a label here is never wrong, and when
# the model errs, it is the model.
#
# The question of this notebook: *what exactly is true in a clip, and could a model score well
# without looking?*
#
# You need notebook 01 (what goes in, what comes out). Running it all took {{measured}} when it was
# built.

# %%
try:
    from lesson import COLOURS, check, plt
except ModuleNotFoundError:
    raise SystemExit(
        "this notebook runs in the folder tutorials/ of crab_mini: jupyter lab tutorials"
    ) from None

import json
from collections import Counter

import numpy as np
from crab_mini import metrics
from crab_mini.world.annotate import ROWS, View
from crab_mini.world.questions import avqa
from crab_mini.world.render import render
from crab_mini.world.scene import RATE, SECONDS, sample_scene
from crab_mini.world.write import boxes_of

# %% [markdown]
# ## A scene is a small table
#
# `sample_scene(seed)` (file `crab_mini/world/scene.py`) draws one: things, each with a category, a
# path through the frame, the seconds in which it is visible, and how loud it is in each second.
# Nothing is painted yet. Two lists of ten entries, `visible` and `gain`, carry all of time:
#
# $$ v_{it} \in \{0, 1\} \quad\text{(thing } i \text{ is in the picture at second } t), \qquad g_{it} \ge 0 \quad\text{(its loudness)} $$

# %%
SEED = 2
scene = sample_scene(SEED)
for thing in scene.things:
    seen = "".join("#" if v else "." for v in thing.visible)
    heard = "".join("#" if g > 0 else "." for g in thing.gain)
    print(f"{thing.category:14} seen {seen}   heard {heard}   loudness {max(thing.gain):.2f}")

# %% [markdown]
# ## What the model gets of it
#
# `render` paints one frame a second and mixes ten seconds of sound. Look at every second frame from
# left to right, then at the waveform below them: the seconds in which something sounds are longer
# bursts, and you cannot tell *which* thing it is by looking at the waveform. Telling that is the
# audio encoder's work (notebook 03).

# %%
clip = render(scene, image=64)
figure = plt.figure(figsize=(5, 2.3))
above, below = figure.subfigures(2, 1, height_ratios=(1.3, 0.9))
for t, axis in zip(range(0, SECONDS, 2), above.subplots(1, SECONDS // 2)):
    axis.imshow(clip.frames[t] // 16 * 16)  # fewer colours: a smaller notebook
    axis.set_title(f"second {t}", fontsize=7)
    axis.axis("off")
axis = below.subplots()
step = 200  # of 16000 samples a second, a curve needs a few
axis.plot(np.arange(0, SECONDS * RATE, step) / RATE, clip.waveform[::step], linewidth=0.4)
axis.set(xlabel="second", ylabel="waveform", xlim=(0, SECONDS), xticks=range(SECONDS + 1))
plt.show()

# %% [markdown]
# ## Seen, heard, and both
#
# Three of the nine tasks ask about time. Each needs one logical operation on the two lists:
#
# | task | asks for | rule |
# |---|---|---|
# | AVVP | events that are seen, events that are heard | $v_{it}$ and $g_{it} > 0$, each by itself |
# | AVE | the one event that is both | $b_{it} = v_{it} \wedge (g_{it} > 0)$ |
# | S4, MS3, AVSS | the pixels of what is both, at one second | $b_{it}$ at a fixed $t$ |
#
# In the figure, the grey row is the *and* of the two coloured rows. Find a thing that is seen first
# and heard later: its grey bar is shorter than both.

# %%
view = View(scene, boxes_of(clip.masks))
figure, axis = plt.subplots(figsize=(8, 0.9 * len(view.names) + 0.9))
both = view.visible & view.audible
rows = (
    ("seen", view.visible, COLOURS[0]),
    ("heard", view.audible, COLOURS[1]),
    ("both", both, "#666666"),
)
for i, name in enumerate(view.names):
    for k, (label, table, colour) in enumerate(rows):
        bars = [(start, end - start) for start, end in metrics.runs(table[i])]
        axis.broken_barh(bars, (i + 0.27 * k, 0.22), color=colour, label=label if i == 0 else None)
axis.set(
    yticks=[i + 0.38 for i in range(len(view.names))],
    yticklabels=view.names,
    xticks=range(SECONDS + 1),
    xlabel="second",
    xlim=(0, SECONDS),
)
axis.invert_yaxis()
axis.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

# %% [markdown]
# ### Exercise: the runs of seconds in which both are true
#
# A span is written as `[start, end)`: the end is the second *after* the last, so `end - start` is
# its length. Off-by-one errors here look harmless and cost a tenth of every AVE score. `check` says
# what is not right yet.


# %%
def spans_of_both(seen, heard):
    """The runs of seconds in which a thing is seen AND heard: two (T,) bool arrays -> [(start,
    end)], end excluded.

    seen = 0 1 1 0, heard = 1 1 1 0 -> [(1, 3)].
    """
    raise NotImplementedError


check(spans_of_both)

# %% [markdown]
# ## From truth to text
#
# `crab_mini/world/annotate.py` turns the lists into the sentences that the model learns to say. The
# reasoning names what is heard and seen second by second, *then* the answer. So each word of an
# answer is a short step from the words before it: that is the point of the paper's reasoning data,
# in the smallest possible form.

# %%
rng = np.random.default_rng(SEED)
for task in ("ave", "avvp", "arig", "ref_avs"):
    for row in ROWS[task](view, rng)[:1]:
        text = row.get("label_content") or row["output"]
        print(f"{task.upper()}\n  {text}\n")

# %% [markdown]
# ## Is it true? The picture and the sound agree with the table
#
# A claim deserves a test. In a second with $g_{it} > 0$ the waveform should be loud, and in a
# second without any sound only the background noise remains. Each point is one second of one of
# forty clips. The gap between the two groups is what makes the labels learnable at all.

# %%
loud, quiet = [], []
for seed in range(40):
    one = sample_scene(seed)
    wave = render(one, image=16).waveform.reshape(SECONDS, RATE)
    for t in range(SECONDS):
        total = sum(thing.gain[t] for thing in one.things)
        (loud if total > 0 else quiet).append((total, np.sqrt((wave[t] ** 2).mean())))
figure, axis = plt.subplots(figsize=(5.5, 3))
axis.scatter(*np.array(loud).T, s=9, label="something sounds")
axis.scatter(*np.array(quiet).T, s=9, marker="x", label="nothing sounds")
axis.set(xlabel="sum of the gains of that second", ylabel="rms of the waveform", yscale="log")
axis.legend()
plt.show()
softest, noisiest = min(rms for _, rms in loud), max(rms for _, rms in quiet)
print(
    f"softest second with sound {softest:.4f}, loudest without {noisiest:.4f}: "
    f"{softest / noisiest:.1f} times apart"
)
assert softest > noisiest

# %% [markdown]
# ## Could a model score well without looking?
#
# A data set with a habit rewards whoever learns the habit. If dogs were mostly on the left, or
# events mostly in the middle, a blind model would know. So the world draws everything
# independently, and we can check the *marginals*. Below: how often each category is the event, and
# how often an event covers each second, over the AVE rows of 3000 scenes.

# %%
rng = np.random.default_rng(1)
views = [View(sample_scene(seed)) for seed in range(3000)]
events = [row for one in views for row in ROWS["ave"](one, rng)]
names = Counter(row["event"] for row in events)
covered = np.mean(
    [[row["start_time"] <= t < row["end_time"] for t in range(SECONDS)] for row in events], 0
)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.5))
left.bar(sorted(names), [names[name] / len(events) for name in sorted(names)])
even = 1 / len(names)
chance = 2 * np.sqrt(even * (1 - even) / len(events))  # two standard errors of a share
left.axhspan(
    even - chance, even + chance, color=COLOURS[-1], alpha=0.15, label="what chance alone does"
)
left.set(ylabel="share of the events", title="category of the event", ylim=(0, 0.18))
left.set_xticks(range(len(names)), sorted(names), rotation=45, ha="right")
left.legend()
right.bar(range(SECONDS), covered, color=COLOURS[1])
right.set(
    xlabel="second",
    ylabel="share of the clips",
    title="seconds that the event covers",
    ylim=(0, 1),
    xticks=range(SECONDS),
)
plt.show()
print(
    f"{len(events)} AVE rows; most frequent category {max(names.values()) / len(events):.3f}, "
    f"even would be {even:.3f}"
)

# %% [markdown]
# The left panel is flat within the grey band of chance: no category is worth guessing. The right
# one is **not** flat, and that is no mistake: a span of several seconds that must fit into ten
# covers the middle more often than the ends. A blind model can use that. How much is it worth? The
# next exercises build AVE's score, then we let a blind guesser play.
#
# ### Exercise: the label of each second, and AVE's accuracy


# %%
def second_labels(event, seconds=10):
    """(name, start, end) -> the label of each of `seconds` seconds: the name from start to end - 1,
    else "background".

    None, an answer that could not be read, is background throughout.
    """
    raise NotImplementedError


def ave_accuracy(pred, target):
    """AVE's score of each clip: the share of seconds with the right label. Lists of labels (N,T)
    twice -> array (N,).

    Background is a label like any other. ValueError where the two tables differ in shape.
    """
    raise NotImplementedError


check(second_labels)
check(ave_accuracy)

# %% [markdown]
# ### A guesser who never looks
#
# Blind strategies against the same rows, with the package's own functions (your answers are
# the same, once `check` says so). The score of AVE is $\frac{1}{T}\sum_t [\hat y_t = y_t]$, and
# *background is a label*, so saying nothing is already worth something.

# %%
truth = [
    metrics.second_labels((row["event"], row["start_time"], row["end_time"])) for row in events
]
usual = names.most_common(1)[0][0]
blind = {"say background throughout": None, f"say `{usual}` all the time": (usual, 0, 10)}
blind |= {f"say `{usual}` from {a} to {b}": (usual, a, b) for a, b in ((3, 7), (2, 8))}
for strategy, event in blind.items():
    score = metrics.ave_accuracy([metrics.second_labels(event)] * len(truth), truth)
    low, high = metrics.bootstrap_interval(score)
    print(f"{strategy:34} {score.mean():.3f}   (95 %: {low:.3f} to {high:.3f})")
background = np.mean([label == "background" for row in truth for label in row])
print(f"share of background seconds        {background:.3f}")

# %% [markdown]
# Surprising, perhaps: *naming* an event blindly is worse than saying nothing at all, because ten
# categories share the event seconds while background has its share alone. Half of the score is
# there for free. That is why a table of results in this project always shows a baseline beside the
# model: an AVE accuracy of one half is **zero** knowledge. The published AVE data set has the same
# property, with its own share of background.
#
# ## Does being seen tell whether it is heard?
#
# This is the deepest shortcut: if visible things mostly sounded, a model could answer every audio
# question with its eyes. Real clips are full of it, people film what makes a noise. Here being seen
# and being heard are drawn independently. So the first two lines below should agree. Do they?

# %%
seen = np.concatenate([one.visible.ravel() for one in views])
heard = np.concatenate([one.audible.ravel() for one in views])
shown = np.concatenate(
    [np.repeat(one.visible.any(1), SECONDS) for one in views]
)  # things that have a picture at all
second = np.tile(np.arange(SECONDS), len(seen) // SECONDS)
print(f"P(heard | seen in this second)   {heard[shown & seen].mean():.3f}")
print(f"P(heard | out of the picture)    {heard[shown & ~seen].mean():.3f}")
print(f"P(heard | never in the picture)  {heard[~shown].mean():.3f}")
given = np.array(
    [
        [heard[shown & (seen == s) & (second == t)].mean() for t in range(SECONDS)]
        for s in (True, False)
    ]
)
figure, axis = plt.subplots(figsize=(5.5, 2.6))
axis.plot(given[0], marker="o", label="seen in this second")
axis.plot(given[1], marker="s", linestyle="--", label="out of the picture")
axis.set(xlabel="second", ylabel="share that is heard", ylim=(0, 0.6), xticks=range(SECONDS))
axis.legend()
plt.show()
print(f"second by second the two differ by {np.abs(given[0] - given[1]).mean():.3f} on average")

# %% [markdown]
# They do not agree, and yet nothing is wrong. Look at the figure: *within* a second the two lines
# run together. Both a span of being seen and a span of being heard cover the middle of a clip more
# often than its ends. So a thing that is seen now is probably in the middle of the clip, and there
# things are heard more often. Time is what statisticians call a confounder. Eyes help a
# blind-folded guesser only as far as a clock would.
#
# The third number is higher, because a thing that is never seen exists only to sound from off
# screen. Nothing of it can be seen, so this is no shortcut either.
#
# ## Questions with no favourite answer
#
# MUSIC-AVQA is known for its lopsided answers: the most frequent answer of a type is right far too
# often. The miniature poses a question only where the answer could be otherwise, and draws the
# answer before the question. The dark bar is what the best constant answer of each type scores, the
# light one what an even spread over that type's answers would give. The smaller the difference, the
# less there is to guess. Counting is the weakest point: a count has a usual value, and no drawing
# of questions takes that away entirely.

# %%
rng = np.random.default_rng(2)
answers: dict[str, Counter] = {}
for one in views[:1200]:
    for row in avqa(one, rng):
        answers.setdefault(row["type"], Counter())[row["answer"]] += 1
kinds = sorted(answers)
usual = [max(answers[kind].values()) / answers[kind].total() for kind in kinds]
even = [1 / len(answers[kind]) for kind in kinds]
figure, axis = plt.subplots(figsize=(7, 2.8))
places = np.arange(len(kinds))
axis.barh(places - 0.2, usual, 0.38, label="always the most frequent answer")
axis.barh(places + 0.2, even, 0.38, color=COLOURS[4], label="an even spread")
axis.set(
    yticks=places, yticklabels=[" ".join(json.loads(kind)) for kind in kinds], xlabel="accuracy", xlim=(0, 1)
)
axis.invert_yaxis()
axis.legend()
plt.show()
total = sum(counter.total() for counter in answers.values())
print(
    f"{total} questions; the most frequent answer of each type is right in "
    f"{sum(max(c.values()) for c in answers.values()) / total:.3f} of them"
)

# %% [markdown]
# ## Where official Crab differs
#
# Its truth is bought: seven published data sets with labels by people, and reasoning written by a
# large language model from those labels (section 3). That text is richer than ours and can be
# wrong; ours is poorer and cannot. A real clip also has what this world lacks: events that fade,
# two dogs, a sound that nobody labelled. Treat a score here as an upper bound of how clean a task
# can be, never as a forecast for real data.
#
# ## Three questions to think about
#
# 1. The seconds in the middle are covered more often than those at the ends. Could you draw spans
#    so that they are not? What else would change?
# 2. A model scores 0.62 on AVE, the blind guesser scores as printed above. Which *number* would you
#    put into a headline?
# 3. The test scenes show things in shapes, colours and pitches that training never had
#    (`crab_mini/world/dials.py`). Which of this notebook's checks would still pass if they were the
#    same, and what would you then not know?
#
# Solutions: `crab_mini/metrics/events.py: runs, second_labels,
# ave_accuracy`. Next: [03 Sound](README.md), once it is there; the [list of notebooks](README.md)
# says which are.
