"""The CUDA source on the CPU: seeded bugs are caught, and the shipped kernels are right, free of races and in bounds.

kernels.cuh and launch.cu are compiled with g++ against cuda_on_cpu.h three times (plain, ThreadSanitizer,
AddressSanitizer + UBSan) and held against float64 numpy. Says nothing about speed on a device.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from .test_fused_lora_rounding import nearest

HERE = Path(__file__).parent
SANITIZERS = {"plain": [], "tsan": ["-fsanitize=thread"],
              "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]}
FLAGS = ["-std=c++17", "-O1", "-g", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
# bug: what catches it, and by which words
BUGS = {"missing_syncthreads": ("tsan", "data race"), "missing_second_syncthreads": ("tsan", "data race"),
        "missing_syncwarp": ("tsan", "data race"), "shuffle_is_no_barrier": ("tsan", "data race"),
        "race_between_blocks": ("tsan", "data race"), "global_out_of_bounds": ("asan", "heap-buffer-overflow"),
        "shared_out_of_bounds": ("plain", "tile[64] of 64"), "divergent_barrier": ("plain", "divergent barrier"),
        "uninitialised_shared": ("plain", "wrong")}
# rows, in, out, rank, heads: odd and unaligned; one row; aligned; more columns than the first and the second tile
SHAPES = [(37, 70, 45, 3, 2), (1, 20, 28, 3, 3), (64, 256, 256, 8, 3), (9, 40, 24, 16, 4), (300, 16, 8, 1, 1)]
# shape, bfloat16, masked
SANITIZED = [((37, 70, 45, 3, 2), False, True), ((37, 64, 40, 3, 2), True, False), ((1, 20, 28, 3, 3), False, False),
             ((21, 32, 48, 8, 4), False, False), ((9, 40, 24, 16, 4), True, True)]
LOWER_HALVES = (0x0000, 0x0001, 0x7fff, 0x8000, 0x8001, 0xffff)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")]


class Programs(dict):
    """(source, sanitizer) -> the program, compiled when first asked for; the scheduler always without ThreadSanitizer."""

    def __init__(self, folder, tests=HERE, schedulers=None):
        """folder: for what is compiled. tests: where the sources are, beside the project's code.

        schedulers: sanitizer -> the compiled scheduler's bytes; those that are missing are added.
        """
        super().__init__()
        self.folder, self.tests, self.schedulers = folder, tests, {} if schedulers is None else schedulers

    def __missing__(self, job):
        source, name = job
        flags = SANITIZERS[name]
        scheduler = self.folder / f"{name}_scheduler.o"
        if name not in self.schedulers:
            self.compile("-c", self.tests / "cuda_on_cpu.cpp", "-o", scheduler, *(flags if name == "asan" else []))
            self.schedulers[name] = scheduler.read_bytes()
        scheduler.write_bytes(self.schedulers[name])
        self[job] = self.folder / f"{source}_{name}"
        self.compile(self.tests / f"{source}.cpp", scheduler, "-o", self[job], *flags)
        return self[job]

    @staticmethod
    def compile(*arguments):
        """Runs g++."""
        subprocess.run(["g++", *FLAGS, *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The programs of this run."""
    return Programs(tmp_path_factory.mktemp("emulation"))


def run(program, *arguments):
    """The finished process; TSan stops at the first race. setarch: old TSan cannot place its shadow otherwise."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}
    fixed = ["setarch", "-R"] if shutil.which("setarch") and "tsan" in program.name else []
    return subprocess.run([*fixed, program, *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_caught_and_its_twin_passes_everywhere(programs, bug):
    sanitizer, words = BUGS[bug]
    for seed in range(3):
        caught = run(programs["cuda_bugs", sanitizer], bug, "bug", seed)
        assert caught.returncode != 0 and words in caught.stdout + caught.stderr, (seed, caught)
        for name in SANITIZERS:
            passed = run(programs["cuda_bugs", name], bug, "twin", seed)
            assert passed.returncode == 0 and passed.stdout == "right\n", (name, seed, passed)


def problem(shape, bfloat16=False, masked=False, router=1):
    """The driver's input as bytes, and as float64: x, A, W_r, B, y, gy, gx, dropout_mask, scaling, mask_scale.

    router: a factor on W_r.
    """
    rows, width, out, rank, heads = shape
    rng = np.random.default_rng(sum(shape))
    scaling, mask_scale = np.float32(1.7), np.float32(1 / 0.7 if masked else 1.0)
    shapes = ((rows, width), (rank, width), (heads, width), (heads * rank, out), (rows, out), (rows, out),
              (rows, width))
    packed, tensors = [], []
    for s in shapes:
        t = rng.standard_normal(s).astype(np.float32) * s[-1] ** -0.25 * (router if len(tensors) == 2 else 1)
        if bfloat16:
            bits = (t.view(np.uint32) >> 16).astype(np.uint16)
            t = (bits.astype(np.uint32) << 16).view(np.float32)
        packed.append((bits if bfloat16 else t).tobytes())
        tensors.append(t.astype(np.float64))
    dropout_mask = rng.random((rows, width)) > 0.3 if masked else np.ones((rows, width), bool)
    packed.append(dropout_mask.astype(np.uint8).tobytes() if masked else b"")
    header = np.array([*shape, bfloat16, masked], np.int32).tobytes()
    header += np.array([scaling, mask_scale], np.float32).tobytes()
    return header + b"".join(packed), (*tensors, dropout_mask, np.float64(scaling), np.float64(mask_scale))


def expected(x, A, W_r, B, y, gy, gx, dropout_mask, scaling, mask_scale, z=None):
    """What the driver must answer: y, z, g, gx, g_stacked, gB; and gx with the part of A alone.

    z (r, N): what everything after it is computed from, where the driver has rounded it.
    """
    dropped = x * dropout_mask * mask_scale
    logits = x @ W_r.T
    g = np.exp(logits - logits.max(1, keepdims=True))
    g /= g.sum(1, keepdims=True)                             # (N, E)
    exact = dropped @ A.T                                    # (N, r)
    z = exact if z is None else z.T
    u = scaling * (g[:, :, None] * z[:, None, :]).reshape(len(x), -1)    # (N, E·r)
    gu = (gy @ B.T).reshape(len(x), *g.shape[1:], len(A)) * scaling
    gz, gg = (g[:, :, None] * gu).sum(1), (gu * z[:, None, :]).sum(2)
    gl = g * (gg - (g * gg).sum(1, keepdims=True))
    without_router = gx + (gz @ A) * dropout_mask * mask_scale
    g_stacked = np.concatenate([gz.T @ dropped, gl.T @ x])
    return [y + u @ B, exact.T, g.T, without_router + gl @ W_r, g_stacked, u.T @ gy], without_router


def half_a_step(values):
    """How far the nearest bfloat16 can be from each value."""
    return np.ldexp(1.0, np.frexp(values)[1] - 9)


def answer(program, data, wanted, bfloat16, seed, folder):
    """What the driver writes, as float64 arrays of the wanted shapes, and the raw bytes."""
    (folder / "in").write_bytes(data)
    result = run(program, folder / "in", folder / "out", seed)
    assert result.returncode == 0, result.stderr[-3000:]
    raw = (folder / "out").read_bytes()
    arrays, at = [], 0
    for i, want in enumerate(wanted):
        narrow = bfloat16 and i != 2                         # g is float32 in any case
        n = want.size * (2 if narrow else 4)
        words = np.frombuffer(raw[at:at + n], np.uint16 if narrow else np.float32)
        arrays.append((words.astype(np.uint32) << 16).view(np.float32) if narrow else words)
        at += n
    assert at == len(raw)
    return [a.astype(np.float64).reshape(w.shape) for a, w in zip(arrays, wanted)], raw


@pytest.mark.parametrize("bfloat16, masked", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shipped_kernels_match_float64_and_do_not_depend_on_the_order(programs, shape, bfloat16, masked, tmp_path):
    data, tensors = problem(shape, bfloat16, masked)
    wanted, _ = expected(*tensors)
    raws = set()
    for seed in range(3):
        got, raw = answer(programs["cuda_driver", "plain"], data, wanted, bfloat16, seed, tmp_path)
        raws.add(raw)
    assert len(raws) == 1, "the order of threads and blocks changed the bits"

    # bfloat16: sums are float32 and rounded once at the end, or twice where two launches add to gx.
    if bfloat16:
        wanted, without_router = expected(*tensors, z=got[1])
    for name, a, b in zip(("y", "z", "g", "gx", "g_stacked", "gB"), got, wanted):
        allowed = np.full(b.shape, 2e-6 * max(np.abs(b).max(), 1e-6))
        if bfloat16 and name != "g":
            allowed += half_a_step(b)
        if bfloat16 and masked and name == "gx":
            allowed += half_a_step(without_router)
        excess = np.abs(a - b) - allowed
        assert np.all(excess <= 0), (name, float(excess.max()))


def test_large_logits_do_not_overflow(programs, tmp_path):
    data, tensors = problem((37, 70, 45, 3, 2), router=200)
    wanted, _ = expected(*tensors)
    assert np.abs(tensors[0] @ tensors[2].T).max() > 400      # exp of it is infinite
    for a, b in zip(answer(programs["cuda_driver", "plain"], data, wanted, False, 0, tmp_path)[0], wanted):
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max()


def test_bfloat16_is_rounded_to_nearest_even_bit_for_bit(programs, tmp_path):
    # Every upper half of a float with the lower halves that decide: ties, their neighbours, both ends.
    bits = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | np.array(LOWER_HALVES, np.uint32)).ravel()
    (tmp_path / "in").write_bytes(bits.tobytes())
    done = run(programs["cuda_rounding", "plain"], tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    raw = (tmp_path / "out").read_bytes()
    narrow = np.frombuffer(raw[:2 * len(bits)], np.uint16)
    values = bits.view(np.float32)
    numbers = ~np.isnan(values)
    with np.errstate(all="ignore"):
        wanted = nearest(values).astype(np.float32).view(np.uint32) >> 16
    assert np.array_equal(narrow[numbers], wanted[numbers]) and (narrow[~numbers] == 0x7fc0).all()

    # The way back is exact.
    wide = np.frombuffer(raw[2 * len(bits):], np.uint32)
    assert np.array_equal(wide, np.arange(1 << 16, dtype=np.uint32) << 16)


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
@pytest.mark.parametrize("shape, bfloat16, masked", SANITIZED)
def test_the_shipped_kernels_have_no_race_and_stay_in_bounds(programs, sanitizer, shape, bfloat16, masked, tmp_path):
    data, tensors = problem(shape, bfloat16, masked)
    answer(programs["cuda_driver", sanitizer], data, expected(*tensors)[0], bfloat16, 1, tmp_path)


def ladder(programs, *arguments):
    """Step -> (error against float64, lines asked for, shuffles) of ladder.cuh."""
    result = run(programs["cuda_ladder", "plain"], *arguments)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    return {name: (float(error), int(lines), int(shuffles)) for name, error, lines, shuffles in rows}


@pytest.mark.parametrize("rows, width, rank", [(64, 256, 11), (37, 70, 5), (1, 3, 1), (130, 33, 16)])
def test_every_step_of_the_ladder_is_right(programs, rows, width, rank):
    for seed in range(2):
        steps = ladder(programs, rows, width, rank, seed)
        assert len(steps) == 4
        for name, (error, *_) in steps.items():
            assert error <= 1e-7 * width, (name, error)


def test_the_ladders_table_is_what_the_emulation_counts(programs):
    text = (HERE.parent / "crab_mini" / "fused_lora" / "ladder.cuh").read_text()
    table = {name: (int(lines), int(shuffles)) for name, lines, shuffles in
             re.findall(r"^//   \d (one_\w+) +(\d+) +(\d+)", text, re.MULTILINE)}
    counted = {name: counts for name, (_, *counts) in ladder(programs, 64, 256, 11, 1).items()}
    assert table == {name: tuple(counts) for name, counts in counted.items()}
