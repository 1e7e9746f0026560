# %% [markdown]
# # 09 The kernel: what does fusing buy?
#
# Every linear layer of the language model carries the interaction-aware LoRA of section 3.2:
#
# $$ y = W x + \frac{\alpha}{r} \sum_{i=1}^{E} g_i \, B_i A x, \qquad g = \mathrm{softmax}(W_r x) $$
#
# A few small matrices beside a large one: by operations the branch is nearly free. Written as a
# loop over heads, it is not free at all. Where does the time go, and how does one get it back
# *without changing the result*?
#
# You need notebook 08 (what the heads do). Files: `crab_mini/fused_lora/`. Running it all took
# {{measured}} when it was built. Where the C++ kernel has been compiled (`python -m
# crab_mini.fused_lora build`), it is measured, too.

# %%
try:
    from lesson import COLOURS, check, plt
except ModuleNotFoundError:
    raise SystemExit(
        "this notebook runs in the folder tutorials/ of crab_mini: jupyter lab tutorials"
    ) from None

import contextlib
import io
import statistics

import torch
import torch.nn.functional as F
from crab_mini.fused_lora import bench, fused_lora, reference

# %% [markdown]
# ## The loop, as the paper writes it
#
# `reference.loop` is the formula, head by head, and it is how official Crab computes it. Read what
# each turn of the loop makes: $Ax$ (again!), and a *full-size* output of $B_i$ that is scaled and
# added. With $N$ tokens and an output of width `out`, that is $E$ tensors of $N \times
# \mathrm{out}$, kept for the backward pass.

# %%
import inspect

print(inspect.getsource(reference.loop))

# %% [markdown]
# ## Two skinny products
#
# All heads share $A$, and the router's weight is a number per head and token. So it can move
# inside:
#
# $$ \sum_i g_i B_i (A x) = B^\top \underbrace{(g \otimes z)}_{u,\; E \cdot r \text{ numbers}}, \qquad z = A x $$
#
# where $B$ is all heads stacked to one matrix of $E \cdot r$ rows. First the token is squeezed to
# $r$ numbers, then spread to $E \cdot r$, then one product makes the output. Step by step:

# %%
torch.manual_seed(0)
N, width, out, r, E, scaling = 6, 10, 8, 4, 3, 2.0
x, weight, bias = torch.randn(N, width), torch.randn(out, width), torch.randn(out)
A, W_r, B = torch.randn(r, width), torch.randn(E, width), torch.randn(E, r, out)

z = x @ A.T  # (N,r)      squeezed, once
g = (x @ W_r.T).softmax(-1)  # (N,E)      the router
u = (g[:, :, None] * z[:, None, :]).flatten(1)  # (N,E*r)    spread over the heads
y = F.linear(x, weight, bias) + scaling * (u @ B.flatten(0, 1))  # (N,out)

torch.testing.assert_close(
    y, reference.fused(x, weight, bias, A, W_r, B, scaling)
)  # the package's fusion ..
torch.testing.assert_close(
    y, reference.loop(x, weight, bias, A, W_r, B, scaling)
)  # .. and the paper's formula
print(
    "the same numbers, to",
    float((y - reference.loop(x, weight, bias, A, W_r, B, scaling)).abs().max()),
)

# %% [markdown]
# Equal up to rounding: sums in another order round differently. That is why the checks in this
# project hold a kernel to a tolerance and the loop in float64 to the truth.
#
# ## What could it cost at best?
#
# Count multiply-adds a token, forward and backward. The frozen layer: `width * out` forward and as
# many for the gradient of $x$ (none for $W$, it is frozen). Each of the branch's three products (A,
# router, B) runs once forward and twice backward. No kernel can be faster than this *floor*.
#
# ### Exercise: count it


# %%
def flop_ratio(width, out):
    """How much dearer the layer with its branch is than the frozen layer alone: operations of both
    / of the layer.

    Multiply-adds a token, forward + backward, r = 8, E = 3. Frozen layer: width * out forward, and
    as many backward for the gradient of x (none for the weight). Branch: (r + E) * width for A and
    the router and r * E * out for B; each of these three products forward, and two more backward
    (of its input and of its weight).
    """
    raise NotImplementedError


check(flop_ratio)

# %%
widths = (64, 128, 256, 512, 1024, 2048, 4096)
figure, axis = plt.subplots(figsize=(5.5, 2.6))
axis.semilogx(widths, [100 * (bench.flop_floor(w, w) - 1) for w in widths], marker="o", base=2)
axis.set(
    xlabel="width of the layer", ylabel="extra operations, %", xticks=widths, xticklabels=widths
)
plt.show()
for w in (256, 4096):
    print(f"width {w}: {100 * (bench.flop_floor(w, w) - 1):.1f} % more operations")

# %% [markdown]
# At the paper's width the branch is almost nothing, at the miniature's it is a good part of the
# layer. Small layers are the hard case: there, overhead shows.
#
# ## Measured
#
# `bench` lets the contenders take turns within a round, in an order drawn anew, and forms the ratio
# to the frozen layer inside the round. A busy machine slows all alike, so the *ratio* is to be
# trusted more than the milliseconds. The dashed line is the floor.

# %%
ROWS, ROUNDS = 4096, 7
timed = {}
with contextlib.redirect_stderr(io.StringIO()):  # which kernel runs is said there
    for size in (256, 512):
        tensors = bench.make(ROWS, size, size, "cpu", torch.float32, torch.float32)
        contenders = bench.candidates(tensors)
        times = bench.interleaved(contenders, tensors, ROUNDS)
        timed[size] = {
            name: statistics.median(
                t / base for t, base in zip(times[name], times["frozen linear"])
            )
            for name in contenders
        }

# %%
figure, axes = plt.subplots(1, len(timed), figsize=(8.5, 2.6), sharey=True)
for axis, (size, ratios) in zip(axes, timed.items()):
    names = list(ratios)
    axis.barh(
        names, ratios.values(), color=[COLOURS[7], COLOURS[3], COLOURS[1], COLOURS[2]][: len(names)]
    )
    axis.axvline(bench.flop_floor(size, size), color="black", linestyle="--", linewidth=0.8)
    axis.set(title=f"{size} to {size}, {ROWS} tokens", xlabel="time, frozen layer = 1")
    axis.invert_yaxis()
axes[1].invert_yaxis()
plt.show()
for size, ratios in timed.items():
    print(
        size,
        ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()),
        f", floor {bench.flop_floor(size, size):.2f}",
    )

# %% [markdown]
# Read the bars against the dashed floor. The loop is far beyond it although its *operations* are
# few: it writes and reads full-size tensors, and memory is slower than arithmetic. The fused form
# gets most of that back with nothing but PyTorch. What is left to a compiled kernel is the
# remainder. (The floor counts operations only. Where the frozen layer itself waits for memory, or
# the machine is busy, a bar may end left of it.) Be careful with small differences: a kernel that
# wins by a few per cent on one machine can lose on the next.
#
# ## Memory: what is kept for the backward pass
#
# Time is half of the story. Autograd keeps what the backward pass needs. The loop keeps $E$
# full-size outputs; the fused operation, with its backward written by hand, keeps $z$ and $g$,
# which are $r + E$ numbers a token.

# %%
tensors = bench.make(ROWS, 512, 512, "cpu", torch.float32, torch.float32)
with contextlib.redirect_stderr(io.StringIO()):
    steps = bench.candidates(tensors)
    kept = {name: bench.saved(step, tensors) / bench.MIB for name, step in steps.items()}
figure, axis = plt.subplots(figsize=(5.5, 2.2))
axis.barh(
    list(kept), kept.values(), color=[COLOURS[7], COLOURS[3], COLOURS[1], COLOURS[2]][: len(kept)]
)
axis.set(xlabel=f"MiB kept for the backward pass ({ROWS} tokens, one layer)")
axis.invert_yaxis()
plt.show()
for name, mib in kept.items():
    print(f"{name:18} {mib:6.2f} MiB")
layers = 32 * 7  # seven linear layers in each of LLaMA's 32 blocks
more = layers * (kept["official's loop"] - kept["fused torch"]) / 1024
print(f"a model of {layers} such layers keeps {more:.1f} GiB more with the loop")

# %% [markdown]
# ## The backward pass is exact, too
#
# A hand-written backward is where kernels go wrong, and quietly: a model with a slightly wrong
# gradient still learns. So every gradient is held against autograd through the loop in float64. The
# router is the delicate one: its gradient goes through the softmax, $\partial\ell_j = g_j (\partial
# g_j - \sum_k g_k \, \partial g_k)$.

# %%
exact = [
    t.detach().double().requires_grad_(i != 1) for i, t in enumerate((x, weight, bias, A, W_r, B))
]
single = [t.detach().float().requires_grad_(i != 1) for i, t in enumerate(exact)]
upstream = torch.randn(N, out, dtype=torch.float64)
reference.loop(*exact, scaling).backward(upstream)
with contextlib.redirect_stderr(io.StringIO()):
    fused_lora(*single, scaling).backward(upstream.float())
for name, one, truth in zip(("x", "W", "bias", "A", "W_r", "B"), single, exact):
    if truth.grad is None:
        print(f"{name:5} frozen, no gradient")
        continue
    error = (one.grad.double() - truth.grad).abs().max() / truth.grad.abs().max()
    print(f"{name:5} largest error {float(error):.1e} of the largest entry")
    assert error < 1e-5

# %% [markdown]
# ## In blocks, as a kernel walks
#
# A compiled kernel does not see all tokens at once. It takes a block of rows that fits into the
# cache, does everything with it (squeeze, route, spread, product), and goes on. Nothing of $u$ is
# ever written to main memory. The CUDA kernels do the same with a thread block's shared memory;
# `crab_mini/fused_lora/ladder.cuh` has the squeeze as a ladder of four versions. The figure shows
# how many cache lines each asks for, counted in an emulation on the CPU
# (`tests/test_cuda_on_cpu.py` counts them anew and also catches races). The arithmetic is the same
# in all four: what changes is only *who reads what when*. Counts are not times, and on a GPU times
# have the last word.

# %%
import re
from pathlib import Path

head = Path("../crab_mini/fused_lora/ladder.cuh").read_text()
table = [
    (name, int(lines), int(shuffles))
    for name, lines, shuffles in re.findall(r"^//   \d (one_\w+) +(\d+) +(\d+)", head, re.M)
]
figure, axis = plt.subplots(figsize=(6.5, 2.2))
names = [name.replace("_", " ") for name, *_ in table]
axis.plot([lines for _, lines, _ in table], names, marker="o")
axis.set(
    xscale="log", xlim=(1e3, 3e5), xlabel="128-byte lines of memory asked for (64 rows, 256 to 11)"
)
axis.invert_yaxis()
plt.show()
for (name, lines, shuffles), (_, before, _) in zip(table[1:], table):
    print(
        f"{name:20} {before / lines:5.1f} times fewer lines than the step before, "
        f"{shuffles} shuffles of a warp"
    )

# %% [markdown]
# ### Exercise: the blocked forward
#
# Three mistakes happen to everybody once: the last block is shorter and gets lost; a block is
# written over its own input; something is carried from one block to the next.


# %%
def blocked_forward(x, weight, bias, A, W_r, B, scaling, block):
    """The fused forward as a kernel walks: `block` rows at a time, all heads of a block at once.

    Arguments as in `lora_forward`, with scaling = alpha / r; block >= 1, which need not divide N.
    No loop over heads. -> (N,out).
    """
    raise NotImplementedError


check(blocked_forward)

# %% [markdown]
# ## Where official Crab differs
#
# It computes the loop: $Ax$ once for each head, one full-size output for each, and one dropout mask
# for each head, where this project draws one for all (so with dropout the two differ in more than
# speed). The *model* is the same, and `tests/test_official_decoder_lora.py` holds it against the
# official code's rules.
#
# ## Three questions to think about
#
# 1. With one head ($E = 1$) the branch can be merged into $W$ and costs nothing. Why not with
#    three?
# 2. The floor counts operations. Which of the measured contenders is limited by operations, which
#    by memory? How would you find out with `bench` alone?
# 3. Fusing keeps $z$ and $g$ and computes $u$ again in the backward pass. When would keeping $u$ be
#    the better trade?
#
# Solutions: `crab_mini/fused_lora/bench.py: flop_floor`, `crab_mini/fused_lora/reference.py:
# fused`. The [list of notebooks](README.md) says which others are there.
