# %% [markdown]
# # 05 The LLM: how is a second looked up?
#
# "Which sound is there at second 3?" To answer, a language model must find the place in its
# sequence that belongs to second 3, and take over what stands there. Nobody programs that. This
# notebook takes LLaMA's decoder apart (RMSNorm, rotary positions, KV cache), trains one in seconds
# on nothing but such look-ups, and watches how it does it.
#
# Paper: section 3.1 (LLaMA-2 as the language model). Files: `crab_mini/model/llm.py`,
# `crab_mini/model/attention.py`. You need notebook 04 (attention). Running it all took {{measured}}
# when it was built. No trained model is needed: the toy here is trained before your eyes.

# %%
try:
    from lesson import COLOURS, check, plt, using
except ModuleNotFoundError:
    raise SystemExit(
        "this notebook runs in the folder tutorials/ of crab_mini: jupyter lab tutorials"
    ) from None

import time

import torch
import torch.nn.functional as F
from crab_mini.config import LLMConfig, StageConfig
from crab_mini.model.attention import attend as package_attend
from crab_mini.model.llm import LLM, RMSNorm, apply_rotary_emb, rotary_table
from crab_mini.training.optimizer import Optimizer, parameter_groups, schedule

# %% [markdown]
# ## RMSNorm: one line, and where its eps belongs
#
# $$ \mathrm{RMSNorm}(x) = \frac{x}{\sqrt{\frac{1}{D}\sum_i x_i^2 + \varepsilon}} \odot w $$
#
# No mean is subtracted, unlike in LayerNorm. The $\varepsilon$ stands *under the root*. For usual
# $x$ nobody sees the difference, and many a check lets it pass. For tiny $x$ it is everything: the
# right form then shrinks to zero, the wrong one still blows $x$ up. The figure shows the size of
# the output for inputs of every size.

# %%
sizes = torch.logspace(-6, 1, 60)
x = sizes[:, None] * torch.tensor([1.0, -1.0, 1.0, -1.0])
right = RMSNorm(4, 1e-5)(x).detach().abs().mean(1)
outside = (x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5)).abs().mean(1)
figure, axis = plt.subplots(figsize=(5.5, 2.6))
axis.loglog(sizes, right, label="eps under the root (LLaMA)")
axis.loglog(sizes, outside, linestyle="--", label="eps outside")
axis.set(xlabel="size of x", ylabel="size of the output")
axis.legend()
plt.show()

# %% [markdown]
# ### Exercise
#
# Write it, then let `check` look. It tries a tiny $x$.


# %%
def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: x (...,D), weight (D,) -> (...,D)."""
    raise NotImplementedError


check(rms_norm)

# %% [markdown]
# ## Rotary positions: attention that knows distances
#
# Attention alone does not know order. Rotary positions turn each pair of dimensions $(i, i + d/2)$
# of a query and of a key by an angle that grows with the position $p$:
#
# $$ \theta_i(p) = p \cdot \theta^{-2i/d}, \qquad
#    \begin{pmatrix} x_i' \\ x_{i+d/2}' \end{pmatrix} =
#    \begin{pmatrix} \cos\theta_i & -\sin\theta_i \\ \sin\theta_i & \cos\theta_i \end{pmatrix}
#    \begin{pmatrix} x_i \\ x_{i+d/2} \end{pmatrix} $$
#
# A product of two turned vectors depends on the *difference* of their angles alone, so on the
# distance. The figure shows it: scores of one query and one key at all pairs of positions. Along
# each diagonal the colour is the same.

# %%
torch.manual_seed(0)
q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
places = torch.arange(24)[None]
cos, sin = rotary_table(places, 16, 100.0)
queries, keys = (apply_rotary_emb(t.expand(1, 1, 24, 16), cos, sin)[0, 0] for t in (q, k))
scores = queries @ keys.T  # (24,24)
figure, axis = plt.subplots(figsize=(3.4, 2.8))
image = axis.imshow(scores, cmap="cividis")
axis.set(xlabel="position of the key", ylabel="position of the query")
figure.colorbar(image, label="score")
plt.show()
shifted = max(
    float((scores.diagonal(d) - scores.diagonal(d)[0]).abs().max()) for d in range(-20, 21)
)
print(f"largest difference along a diagonal: {shifted:.1e}")
assert shifted < 1e-4

# %% [markdown]
# Two traps lie here. LLaMA pairs dimension $i$ with $i + d/2$ (*halves*), the original paper pairs
# *neighbours*; weights trained with one are garbage with the other, and shapes never tell. And the
# angle is in radians.
#
# ### Exercise


# %%
def rotary_table_of(positions, size, theta):
    """Cosine and sine of position * theta^(-2i/size), i = 0 .. size/2 - 1: positions (B,L) -> two
    (B,1,L,size/2)."""
    raise NotImplementedError


def apply_rotary(x, cos, sin):
    """LLaMA's rotation: dimension i together with i + size/2 by their angle. x (B,n,L,size), cos
    and sin (B,1,L,size/2).

    first' = first cos - second sin, second' = second cos + first sin.
    """
    raise NotImplementedError


check(rotary_table_of)
check(apply_rotary)

# %% [markdown]
# ## A model that must look up seconds
#
# The toy's sequences are `- - 0 dog 1 bell 2 drum .. - - - ? 3`, with six seconds, ten names and
# some filler before and behind the story, drawn anew each time. The answer is the name that follows
# the asked second. Guessing is right one time in ten. (In a real prompt the filler is the
# question's words: a second is never equally far from its answer.)
#
# `crab_mini` writes a clip in almost this form: each second's number, then the tokens of its
# picture and its sound. With one difference, which is a decision of this project: **each of those
# tokens also carries the embedding of its second's number** (`Crab.embed` adds it). Official Crab
# leaves time to the order of tokens. What does that buy? We train four models. The first is a
# warning: its stories have no filler at all.

# %%
SECONDS, NAMES, QUESTION, FILLER = (
    6,
    10,
    16,
    17,
)  # ids: 0-5 the seconds, 6-15 the names, then `?` and `-`
GAP = 8  # filler tokens in a story, before and behind it together


def draw(count: int, rng: torch.Generator, gap: int = GAP):
    """Stories with a question: ids (count, 14 + gap), the right names (count,), and where the names
    stand (count, 6)."""
    names = torch.randint(NAMES, (count, SECONDS), generator=rng) + SECONDS
    story = torch.stack([torch.arange(SECONDS).expand(count, -1), names], 2).flatten(
        1
    )  # 0 dog 1 bell ..
    asked = torch.randint(SECONDS, (count, 1), generator=rng)
    start = torch.randint(gap + 1, (count, 1), generator=rng)  # so much of the filler comes first
    ids = torch.full((count, 2 * SECONDS + gap), FILLER).scatter(
        1, start + torch.arange(2 * SECONDS), story
    )
    ids = torch.cat([ids, torch.full((count, 1), QUESTION), asked], 1)
    return ids, names.gather(1, asked)[:, 0], start + 2 * torch.arange(SECONDS) + 1


def answers(llm: LLM, ids: torch.Tensor, places: torch.Tensor, carry: bool) -> torch.Tensor:
    """Logits (count, V) of the token after the last one. carry: names carry their second's
    embedding."""
    embeds = llm.embed(ids)  # (count, L, D)
    if carry:
        second = llm.embed(torch.arange(SECONDS)).expand(len(ids), -1, -1)
        embeds = embeds.scatter_add(1, places[..., None].expand(-1, -1, embeds.shape[2]), second)
    return llm.head(llm.encode(embeds)[:, -1])


def accuracy(llm: LLM, test: tuple, carry: bool) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return float((answers(llm, test[0], test[2], carry).argmax(-1) == test[1]).float().mean())


def train(layers: int, carry: bool, steps: int, gap: int = GAP):
    """A model, and its accuracy after every twentieth step."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    llm = LLM(
        LLMConfig(
            vocab_size=18, dim=32, layers=layers, heads=1, kv_heads=1, ffn_dim=64, rope_theta=100.0
        )
    )
    optimizer = Optimizer(parameter_groups(llm, StageConfig(lr=3e-3, muon_lr=0.02)))
    test, curve = draw(400, torch.Generator().manual_seed(1), gap), []
    for step in range(steps):
        ids, names, places = draw(64, rng, gap)
        loss = F.cross_entropy(answers(llm, ids, places, carry), names)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(schedule(step, step / steps, 20))
        if step % 20 == 19:
            curve.append(accuracy(llm, test, carry))
    return llm, curve


started = time.process_time()
# label: (layers, names carry their second, training steps, filler)
setups = {
    "fixed places, plain, 1 layer": (1, False, 100, 0),
    "plain, 1 layer": (1, False, 600, GAP),
    "plain, 2 layers": (2, False, 600, GAP),
    "carrying their second, 1 layer": (1, True, 100, GAP),
}
trained = {label: train(*setup) for label, setup in setups.items()}
print(f"four models in {time.process_time() - started:.0f} s of one processor core")

# %%
figure, axis = plt.subplots(figsize=(7.5, 3))
for label, colour, marker in zip(setups, COLOURS, "xos^"):
    curve = trained[label][1]
    axis.plot(
        range(20, 20 * len(curve) + 1, 20),
        curve,
        color=colour,
        marker=marker,
        markersize=4,
        label=label,
    )
axis.axhline(1 / NAMES, color="black", linewidth=0.8, linestyle=":", label="guessing")
axis.set(xlabel="training step", ylabel="accuracy", ylim=(0, 1.05))
axis.legend(bbox_to_anchor=(1, 0.5), loc="center left")
plt.show()
moving = draw(400, torch.Generator().manual_seed(2))
print(f"{'':32} as trained   on stories with filler")
for label, (_, carry, _, _) in setups.items():
    llm, curve = trained[label]
    print(f"{label:32} {curve[-1]:.2f}         {accuracy(llm, moving, carry):.2f}")
final = [curve[-1] for _, curve in trained.values()]
assert final[0] > 0.95 and final[1] < 0.9 and final[2] > 0.95 and final[3] > 0.95

# %% [markdown]
# Read it from the top.
#
# - *Fixed places, one layer*: perfect within a few dozen steps, and useless on stories with filler.
#   It never looked for a second. It learned that "3" means "so many places back", which rotary
#   positions make easy. A perfect score on data with a fixed layout says nothing about looking
#   things up.
# - *Plain, one layer*: stuck. At the place of a name stands only the name, and no query can tell
#   whose second it follows. It does far better than guessing all the same: question 1 below.
# - *Plain, two layers*: long as good as the former, then it *finds* something and climbs to the
#   top. The textbook's way would be an *induction head* (arXiv 2209.11895): the first layer lets
#   each name look at the token before it, so that the name carries its second; the second layer
#   finds the name that carries the asked number. We will look whether it is.
# - *Carrying their second, one layer*: one layer is enough, and it learns at once. That is what
#   "finds it in one step of attention" means in `crab_mini/model/crab.py`.
#
# %% [markdown]
# ## Watching it
#
# `attend` returns weights times values. If the values are the identity matrix, it returns the
# weights themselves. So we put a watcher in the package's place with `using`, the same way in which
# you put in your own answers, and run one story.


# %%
def watched(llm: LLM, ids: torch.Tensor, places: torch.Tensor, carry: bool) -> list[torch.Tensor]:
    """The attention weights (count,L,L) of each layer."""
    kept = []

    def attend(q, k, v, mask=None, causal=False):
        identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
        kept.append(package_attend(q, k, identity, mask, causal)[:, 0])
        return package_attend(q, k, v, mask, causal)

    with using(attend), torch.no_grad():
        answers(llm, ids, places, carry)
    return kept


stories, _, places = draw(300, torch.Generator().manual_seed(3))
carrying = watched(trained["carrying their second, 1 layer"][0], stories, places, True)
plain = watched(trained["plain, 2 layers"][0], stories, places, False)
words = ["012345abcdefghij?-"[i] for i in stories[0].tolist()]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8))
for axis, weights, title in zip(
    axes, (*carrying, *plain), ("carrying, its only layer", "plain, layer 0", "plain, layer 1")
):
    axis.imshow(weights[0], cmap="cividis", vmin=0, vmax=1)
    axis.set(
        title=title,
        xlabel="looks at",
        ylabel="token",
        xticks=range(len(words)),
        yticks=range(len(words)),
        xticklabels=words,
        yticklabels=words,
    )
plt.show()

# Averages over 300 stories: of the last token, and of the names.
row, asked = torch.arange(len(stories)), stories[:, -1]
answer_at = places[row, asked]
print(f"{'':26} last token: on the answer   on its number   names: on the second before")
for title, weights in (
    ("carrying, its only layer", carrying[0]),
    ("plain, layer 0", plain[0]),
    ("plain, layer 1", plain[1]),
):
    last, names = weights[:, -1], weights[row[:, None], places, places - 1]
    print(
        f"{title:26} {last[row, answer_at].mean():18.2f} {last[row, answer_at - 1].mean():15.2f} "
        f"{names.mean():18.2f}"
    )
assert carrying[0][row, -1, answer_at].mean() > 0.5

# %% [markdown]
# Look at the bottom row of each map: that is the asked number, which must produce the answer. On
# the left it lights up at two neighbours, the equal number in the story and the answer behind it:
# both hold the embedding that is asked for. This is a look-up as one imagines it, and the first two
# columns of the table say the same over 300 stories.
#
# Now the plain model. An induction head would show two things: in layer 0 the names look at the
# second before them (last column), and in layer 1 the last token looks at the answer (first
# column). When this notebook was built, *neither was there*. Instead the last token looks at the
# answer in layer 0 already, in a part of the stories, and layer 1 looks elsewhere; the rest is
# spread over distances and the MLP. We know *that* the model needs both layers (the curves), not
# *how* it uses them. A map of attention is evidence, not an explanation, and an explanation that
# sounds right still has to be looked for in the numbers.
#
# ### Is it the positions? Take them away
#
# How much of it is position? Without rotary positions the same trained model sees a bag of tokens.
# One line of `using` answers it: a function that does not turn anything.


# %%
def apply_rotary_nothing(x, cos, sin):
    """No rotation at all."""
    return x


apply_rotary_nothing.__name__ = "apply_rotary"
for label, (_, carry, _, gap) in setups.items():
    llm, test = trained[label][0], draw(400, torch.Generator().manual_seed(1), gap)
    with using(apply_rotary_nothing):
        without = accuracy(llm, test, carry)
    print(f"{label:32} with positions {accuracy(llm, test, carry):.2f}, without {without:.2f}")

# %% [markdown]
# The plain models fall towards guessing. The model whose names carry their second loses, too, for
# it was trained with positions, but it keeps most: it finds the place by *content*. In a clip of
# ten seconds with dozens of tokens each this is the more robust way, and it costs one addition.
#
# ## The KV cache: why the second token is cheap
#
# Generating token by token, a model would compute all earlier keys and values again and again. They
# never change, because no token sees a later one. So they are kept. Time of a whole answer without
# a cache grows with the square of its length and more, with a cache it grows about linearly.

# %%
llm = LLM(LLMConfig(vocab_size=300, dim=96, layers=3, heads=4, kv_heads=4, ffn_dim=256)).eval()
prompt = torch.randint(300, (1, 60))


def without_cache(count: int) -> torch.Tensor:
    """Greedy ids (1,count), every step from the beginning."""
    ids = prompt
    for _ in range(count):
        ids = torch.cat([ids, llm(ids)[:, -1:].argmax(-1)], 1)
    return ids[:, prompt.shape[1] :]


lengths, times = (10, 40, 80, 120), {"with the cache": [], "without": []}
with torch.no_grad():
    for count in lengths:
        for label, run in (
            ("with the cache", lambda n: llm.generate(prompt, n)),
            ("without", without_cache),
        ):
            started = time.perf_counter()
            said = run(count)
            times[label].append(1000 * (time.perf_counter() - started))
        assert torch.equal(said, llm.generate(prompt, count))  # the same answer
figure, axis = plt.subplots(figsize=(5, 2.6))
for (label, values), marker in zip(times.items(), "os"):
    axis.plot(lengths, values, marker=marker, label=label)
axis.set(xlabel="new tokens", ylabel="milliseconds")
axis.legend()
plt.show()
print(
    f"{lengths[-1]} new tokens: {times['without'][-1] / times['with the cache'][-1]:.1f} "
    "times as fast with the cache"
)

# %% [markdown]
# ### Exercises: positions, the cache, and generation
#
# With a cache, two things go wrong in practice. *Padding*: prompts of unequal length are padded on
# the left, and padding must neither be seen nor be counted as a position. *Positions*: the next
# token stands after the real tokens, not after the columns of the cache. `generate` needs no cache
# and is what the cached form is held against.


# %%
def token_positions(attention_mask, seen):
    """Where new tokens stand: attention_mask (B,L) bool, padded on the left; seen (B,): real tokens
    before these.

    -> (B,L) whole numbers. Padding takes no place: the first real token of a row comes right after
    the `seen` ones, each further one a place later. What stands at padding does not matter, nor a
    shift that is the same for all rows.
    """
    raise NotImplementedError


def cache_write(keys, values, length, k, v):
    """One layer's cache: keys and values (B,n,capacity,d) hold `length` tokens; k, v (B,n,L,d) are
    written behind them.

    In place. -> all keys and all values written so far, (B,n,length+L,d) each. ValueError if they
    do not fit.
    """
    raise NotImplementedError


check(token_positions)
check(cache_write)


# %%
def generate(llm, ids, attention_mask, new_tokens):
    """Greedy answers without a cache: ids (B,L), padded on the left where attention_mask (B,L) is
    False.

    -> the new ids alone, (B, new_tokens). `llm(ids, attention_mask)` gives logits (B,L,V), those at
    l for token l + 1.
    """
    raise NotImplementedError


check(generate)

# %% [markdown]
# ### Your own parts in the model
#
# Once your functions pass, `with using(rms_norm, apply_rotary): ...` runs the toy on them. Nothing
# changes in its accuracy, and that is the point: you have written the model. In the notebooks with
# a trained model the same line lets your code answer questions about clips.
#
# ## Where official Crab differs
#
# - It uses LLaMA-2 as published: the same block, at 32 layers of width 4096. `python train.py
#   --preset paper` has those sizes.
# - It finds the states of mask tokens at *index offsets that are written into the code*, among them
#   a -1 that depends on the version of a library's cache. Here the cache belongs to `llm.py`, and
#   states come back with the ids they predicted.
# - Time is told by the order of tokens. Here each token of a second also carries the second's
#   number, as measured above.
#
# ## Three questions to think about
#
# 1. The plain one-layer model does better than guessing. What can it know? (Hint: which names occur
#    in the story at all?)
# 2. Why may positions start at 100 instead of 0 without any change, but not at 0 in one row and at
#    3 in the next? Or may they?
# 3. A cache makes each token cheap but costs memory. For the paper's sizes (32 layers, width 4096,
#    two bytes a number), how much does one clip with 700 tokens take?
#
# Solutions: `crab_mini/model/llm.py: RMSNorm, rotary_table, apply_rotary_emb, KVCache.write,
# LLM.encode, LLM.generate`. The [list of notebooks](README.md) says which others are there.
