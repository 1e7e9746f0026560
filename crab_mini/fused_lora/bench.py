"""Times each kernel beside a frozen linear layer and official Crab's loop.

- The contenders of one size take turns within a round, in a random order. The ratio to the linear
  layer is formed within the round, so that a busy machine slows both alike. The median over the
  rounds is printed.
- Each timed step follows one that is not timed: what ran before decides what is cached.
- The C library is told to keep freed memory. Otherwise it returns memory to the system after some
  steps and not after others, and each return costs a contender up to 3 ms of page faults.
- The floor is the ratio of floating point operations (on a GPU also of bytes). No kernel can be
  below it.
- `--sizes tiny` has the layers of the preset `tiny`, in a training step (forward and backward) and
  in a decoding step (forward alone, one row for each of 64 answers). With bfloat16 they run under
  autocast, as in training.

    python -m crab_mini.fused_lora bench --sizes tiny --dtype bfloat16
"""

import contextlib
import ctypes
import os
import random
import statistics
import time

import torch
import torch.nn.functional as F

from . import build, dispatch, fused_lora, reference

RANK, HEADS = 8, 3
MIB = 2**20
_TINY = ((192, 192), (192, 512), (512, 192))
# name -> (rows, in, out, whether a backward pass follows)
SIZES = {
    "square": ((4096, 256, 256, True), (4096, 1024, 1024, True)),
    "tiny": (*((64 * 240, *layer, True) for layer in _TINY),
             *((64, *layer, False) for layer in _TINY)),
    "paper": ((4096, 256, 256, True), (4096, 1024, 1024, True), (4096, 4096, 4096, True),
              (4096, 4096, 11008, True)),
}


def run(device, threads, rounds, dtype, sizes):
    """Prints one table per size.

    device: "cpu" or "cuda". threads: of the CPU. rounds: how often each contender is timed.
    dtype: of the computation. sizes: a name of SIZES.
    """
    torch.set_num_threads(threads)
    keep_memory()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")         # or the profiler in `peak` prints
    cuda = device == "cuda"
    what = torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {device} ({what}), {threads} thread(s), {dtype}, "
          f"rank {RANK}, {HEADS} heads, median of {rounds} rounds")

    # Under autocast the parameters stay float32, so each layer casts them, the linear layer too.
    mixed = sizes == "tiny" and dtype == torch.bfloat16
    for rows, width, out, train in SIZES[sizes]:
        tensors = make(rows, width, out, device, dtype, torch.float32 if mixed else dtype)
        floors = f"floor {flop_floor(width, out, train):.3f} by operations"
        if cuda:
            floors += f", {byte_floor(rows, width, out, train):.3f} by bytes"
        passes = "forward + backward" if train else "forward"
        print(f"\n{rows} rows, {width} -> {out}, {passes}: {floors}")
        print(f"{'':18}{'ms':>9}{'ratio':>8}{'peak MiB':>10}{'saved MiB':>11}")
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            contenders = candidates(tensors)
            times = interleaved(contenders, tensors, rounds, train)
            for name, step in contenders.items():
                pairs = zip(times[name], times["frozen linear"])
                ratio = statistics.median(own / base for own, base in pairs)
                print(f"{name:18}{statistics.median(times[name]):9.3f}{ratio:8.3f}"
                      f"{peak(step, tensors, train) / MIB:10.2f}{saved(step, tensors) / MIB:11.2f}")


def keep_memory():
    """Tells glibc not to return freed memory to the system. Other C libraries are left alone."""
    trim_threshold, mmap_max = -1, -4                       # as malloc.h numbers them
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def make(rows, width, out, device, dtype, parameters):
    """x, weight, bias, A, W_r, B as the layer has them, and gy, the gradient that arrives.

    dtype: of x and gy. parameters: the dtype of all others.
    """
    shapes = ((rows, width), (out, width), (out,), (RANK, width), (HEADS, width),
              (HEADS, RANK, out), (rows, out))
    dtypes = (dtype, *[parameters] * 5, dtype)
    made = [torch.randn(s, device=device, dtype=d) * s[-1] ** -0.5 for s, d in zip(shapes, dtypes)]
    for i in (0, 3, 4, 5):
        made[i].requires_grad_(True)
    return made


def candidates(tensors):
    """Name -> function () -> y. A compiled kernel is among them if it is built and fits."""
    *layer, _ = tensors
    found = {"frozen linear": lambda: F.linear(*layer[:3]),
             "official's loop": lambda: reference.loop(*layer, 2.0),
             "fused torch": lambda: fused_lora(*layer, 2.0, kernel="torch")}
    for name in ("cpp", "cuda"):
        reason = dispatch.refusal(name, layer[0], layer[5]) or build.load(name)[1]
        if reason is None:
            found[f"fused {name}"] = lambda name=name: fused_lora(*layer, 2.0, kernel=name)
        elif name == {"cpu": "cpp"}.get(layer[0].device.type, "cuda"):
            print(f"without {name}: {reason}")
    return found


def once(step, tensors, train):
    """One forward pass, and one backward pass if `train`. The gradients are dropped."""
    *layer, gy = tensors
    if train:
        wanted = [t for t in layer if t.requires_grad]
        torch.autograd.grad(step(), wanted, gy, allow_unused=True)
    else:
        with torch.no_grad():
            step()


def interleaved(contenders, tensors, rounds, train=True):
    """Name -> the milliseconds of each round. Every contender runs once a round.

    A short step is repeated until it takes some milliseconds, so that the clock can measure it. The
    first round is not counted.
    """
    random.seed(0)
    device = tensors[0].device.type
    repeats = 1 if train else 100
    times = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, step in random.sample(list(contenders.items()), len(contenders)):
            once(step, tensors, train)
            started = clock(device)
            for _ in range(repeats):
                once(step, tensors, train)
            if turn > 0:
                times[name].append(1000 * (clock(device) - started) / repeats)
    return times


def clock(device):
    """Seconds, with the device's work done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def flop_floor(width, out, train=True):
    """Operations of linear layer + branch over those of the linear layer. Its weight is frozen."""
    stacked, spread = (RANK + HEADS) * width, RANK * HEADS * out
    return 1 + (3 / 2 if train else 1) * (stacked + spread) / (width * out)


def byte_floor(rows, width, out, train=True):
    """The same for the bytes that are moved.

    The branch reads and writes its parameters, z and g. For its gradient it reads x once more. All
    other reads it shares with the linear layer.
    """
    passes = 2 if train else 1
    linear = passes * (rows * (width + out) + width * out)
    small = (RANK + HEADS) * width + RANK * HEADS * out + rows * (RANK + HEADS)
    return 1 + (passes * small + train * rows * width) / linear


def saved(step, tensors):
    """Bytes that autograd keeps between the passes, beyond x and the parameters."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # While the result lives, no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = step()
    given = {t.untyped_storage().data_ptr() for t in tensors}
    del held
    return sum(size for pointer, size in kept.items() if pointer not in given)


def peak(step, tensors, train=True):
    """The most bytes allocated at any one time during a step, beyond those before it."""
    if tensors[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(step, tensors, train)
        return torch.cuda.max_memory_allocated() - before

    # On a CPU the profiler records every allocation and release. Their running sum has a maximum.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        once(step, tensors, train)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
