"""What the branch costs: forward + backward of each kernel, beside a frozen linear layer and official Crab's loop.

The contenders of one size take turns within a round, in an order drawn anew, and the ratio to the linear layer is
formed inside the round, so that a busy machine slows both alike; the median over the rounds is printed. Before each
timed step runs one that is not timed: what ran before decides which memory is still mapped and cached. The floor is
the share of extra floating point operations (on a GPU also of bytes): no kernel can be below it.
Run by `python -m crab_mini.fused_lora bench`.
"""

import os
import random
import statistics
import time

import torch
import torch.nn.functional as F

from crab_mini.fused_lora import build, dispatch, fused_lora, reference

ROWS, RANK, HEADS = 4096, 8, 3
SIZES = {"cpu": ((256, 256), (1024, 1024)), "cuda": ((256, 256), (1024, 1024), (4096, 4096), (4096, 11008))}
MIB = 2**20


def run(device, threads, rounds, dtype):
    """Prints one table a size. device "cpu" or "cuda"; threads of the CPU; rounds of the interleaved timing."""
    torch.set_num_threads(threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")         # the profiler that counts memory announces itself otherwise
    what = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {device} ({what}), {threads} thread(s), {dtype}, {ROWS} rows, rank {RANK}, "
          f"{HEADS} heads, median of {rounds} interleaved rounds")
    for width, out in SIZES[device]:
        tensors = make(width, out, device, dtype)
        contenders = candidates(tensors)
        print(f"\n{width} -> {out}: floor {flop_floor(width, out):.3f} by operations"
              + (f", {byte_floor(width, out, tensors[0].element_size()):.3f} by bytes" if device == "cuda" else ""))
        print(f"{'':18}{'ms':>9}{'ratio':>8}{'peak MiB':>10}{'saved MiB':>11}")
        times = interleaved(contenders, tensors, rounds)
        for name, step in contenders.items():
            ratio = statistics.median(t / base for t, base in zip(times[name], times["frozen linear"]))
            print(f"{name:18}{statistics.median(times[name]):9.2f}{ratio:8.3f}{peak(step, tensors) / MIB:10.2f}"
                  f"{saved(step, tensors) / MIB:11.2f}")


def make(width, out, device, dtype):
    """x, weight, bias, A, R, B as the layer has them, and gy: the gradient that arrives."""
    shapes = ((ROWS, width), (out, width), (out,), (RANK, width), (HEADS, width), (HEADS, RANK, out), (ROWS, out))
    made = [torch.randn(s, device=device, dtype=dtype) * s[-1] ** -0.5 for s in shapes]
    for i in (0, 3, 4, 5):
        made[i].requires_grad_(True)
    return made


def candidates(tensors):
    """Name -> function () -> y. Compiled kernels only where they are built and fit these tensors."""
    *layer, _ = tensors
    found = {"frozen linear": lambda: F.linear(*layer[:3]), "official's loop": lambda: reference.loop(*layer, 2.0),
             "fused torch": lambda: fused_lora(*layer, 2.0, kernel="torch")}
    for name in ("cpp", "cuda"):
        reason = dispatch.refusal(name, layer[0], layer[5]) or build.load(name)[1]
        if reason is None:
            found[f"fused {name}"] = lambda name=name: fused_lora(*layer, 2.0, kernel=name)
        elif name == {"cpu": "cpp"}.get(layer[0].device.type, "cuda"):
            print(f"without {name}: {reason}")
    return found


def forward_backward(step, tensors):
    """One forward and one backward; the gradients are dropped again."""
    *layer, gy = tensors
    torch.autograd.grad(step(), [t for t in layer if t.requires_grad], gy, allow_unused=True)


def interleaved(contenders, tensors, rounds):
    """Name -> milliseconds of each round, every contender once a round, the first round not counted."""
    random.seed(0)
    device = tensors[0].device.type
    times = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, step in random.sample(list(contenders.items()), len(contenders)):
            forward_backward(step, tensors)
            started = clock(device)
            forward_backward(step, tensors)
            if turn > 0:
                times[name].append(1000 * (clock(device) - started))
    return times


def clock(device):
    """Seconds, with the device's work done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def flop_floor(width, out):
    """Operations of linear + branch over those of the linear layer, forward + backward, the weight frozen."""
    branch = 3 * (RANK + HEADS) * width + 3 * RANK * HEADS * out
    return 1 + branch / (2 * width * out)


def byte_floor(width, out, size):
    """The same for memory: the branch reads x once more for its gradient, and its parameters; all else is shared."""
    linear = 2 * (ROWS * (width + out) + width * out)
    branch = ROWS * width + 2 * ((RANK + HEADS) * width + RANK * HEADS * out) + 2 * ROWS * (RANK + HEADS)
    return 1 + branch * size / (linear * size)


def saved(step, tensors):
    """Bytes that autograd keeps between forward and backward beyond x and the parameters."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = step()                                       # while it lives, no address is handed out twice
    given = {t.untyped_storage().data_ptr() for t in tensors}
    del held
    return sum(n for pointer, n in kept.items() if pointer not in given)


def peak(step, tensors):
    """Most bytes allocated at any one time during forward + backward, counted from before it."""
    if tensors[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_backward(step, tensors)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        forward_backward(step, tensors)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
