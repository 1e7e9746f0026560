"""Changes one line of the kernels at a time, runs their tests and lists the changes that no test notices.

    python -m tests.mutate_kernels                      # all of them; about half an hour on two cores
    python -m tests.mutate_kernels cpu.cpp              # those of one file
    python -m tests.mutate_kernels kernels.cuh --only barrier

Run by hand, and not by pytest. It changes copies, and never the project. To save time, the tests are called as
functions, and all changes of cpu.cpp are compiled into one library, each in a namespace of its own. The survivors that
are known, and why they survive, are listed in crab_mini/fused_lora/README.md.
"""

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from crab_mini.fused_lora import build, dispatch

from . import test_cuda_on_cpu as emulation
from . import test_fused_lora as values
from . import test_fused_lora_cpp as compiled
from . import test_fused_lora_rounding as rounding

HOME = Path(__file__).parent.parent
CUDA = ("access.cuh", "kernels.cuh", "launch.cu")
FOLDER = HOME / "crab_mini" / "fused_lora"
# file, what kind of line it is, the text, what it becomes. The text occurs once in the file.
MUTANTS = [
    ("access.cuh", "rounding", "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16", "bits >> 16"),
    ("access.cuh", "rounding", "0x7fffu + ((bits >> 16) & 1u)", "0x7fffu"),
    ("access.cuh", "rounding", "0x7fffu + ((bits >> 16) & 1u)", "0x8000u"),
    ("access.cuh", "rounding", "if (value != value) return {0x7fc0};", ""),
    ("access.cuh", "rounding", "unsigned(value.bits) << 16", "unsigned(value.bits & 0x7fffu) << 16"),
    ("access.cuh", "bounds", "group = {};", "group;"),
    ("access.cuh", "bounds", "if (d < width) group =", "group ="),
    ("access.cuh", "bounds", "if (d < width) group =", "if (d + V < width) group ="),
    ("access.cuh", "arithmetic", "group.at[v] = narrow<T>(from[v])", "group.at[v] = narrow<T>(from[0])"),
    ("access.cuh", "bounds", "if (!dropout_mask || d >= width) return;", "if (!dropout_mask) return;"),
    ("access.cuh", "arithmetic", "? mask_scale : 0.0f", "? 1.0f : 0.0f"),
    ("access.cuh", "arithmetic", "* width + d + v] ?", "* width + d] ?"),
    ("kernels.cuh", "bounds", "k + 1 == count ? second", "k == count ? second"),
    ("kernels.cuh", "arithmetic", "return scaling * g[", "return g["),
    ("kernels.cuh", "arithmetic", "g[size_t(k / rank) * rows + n]", "g[size_t(k % rank) * rows + n]"),
    ("kernels.cuh", "arithmetic", "z[size_t(k % rank) * rows + n]", "z[size_t(k / rank) * rows + n]"),
    ("kernels.cuh", "arithmetic", "v[i] = (upper ? v[i + HALF] : v[i]) + given", "v[i] = (upper ? v[i] : v[i + HALF]) + given"),
    ("kernels.cuh", "arithmetic", "if constexpr (STEP > 1)", "if constexpr (STEP > 2)"),
    ("kernels.cuh", "bounds", "const int n = min(first + row, rows - 1);", "const int n = first + row;"),
    ("kernels.cuh", "bounds", "      drop(dropout_mask, mask_scale, n, d, width, xs[row]);", ""),
    ("kernels.cuh", "bounds", "if (k >= m.all) break;", "if (k > m.all) break;"),
    ("kernels.cuh", "bounds", "for (int d = lane * V; d < width; d += WARP * V) {", "for (int d = lane * V; d + V < width; d += WARP * V) {"),
    ("kernels.cuh", "barrier", "+ i] = sum[i];\n  __syncwarp();", "+ i] = sum[i];"),
    ("kernels.cuh", "bounds", "  if (first >= rows) return;  // the whole warp", "  if (first > rows) return;  // the whole warp"),
    ("kernels.cuh", "arithmetic", "top = fmaxf(top, dots[logits + j]);", "top = dots[logits];"),
    ("kernels.cuh", "arithmetic", "top = fmaxf(top, dots[logits + j]);", "top = 0.0f;"),
    ("kernels.cuh", "arithmetic", "expf(dots[logits + e] - top) / sum", "expf(dots[logits + e] - top)"),
    ("kernels.cuh", "arithmetic", "g_both[size_t(k) * rows + n] = u.scaling * sum;", "g_both[size_t(k) * rows + n] = sum;"),
    ("kernels.cuh", "arithmetic", "ggs[offset + row * KT + e] = u.scaling * sum;", "ggs[offset + row * KT + e] = sum;"),
    ("kernels.cuh", "barrier", "of all heads of its row.\n  __syncwarp();", "of all heads of its row."),
    ("kernels.cuh", "arithmetic", "(ggs[offset + row * KT + e] - mean)", "(ggs[offset + row * KT + e] + mean)"),
    ("kernels.cuh", "bounds", "CRAB_SHARED(float, ggs, WARPS * ROWS * KT);", "CRAB_SHARED(float, ggs, WARPS * ROWS * KT / 8);"),
    ("kernels.cuh", "bounds", "cs[i] = row < here ? c.at(k, first + row) : 0.0f;", "cs[i] = c.at(k, first + row);"),
    ("kernels.cuh", "barrier", "  }\n  __syncthreads();\n  const int d =", "  }\n  const int d ="),
    ("kernels.cuh", "bounds", "if (row >= here) break;", ""),
    ("kernels.cuh", "arithmetic", "drop(dropout_mask, mask_scale, first + row, d, width, sum[row]);", ""),
    ("kernels.cuh", "arithmetic", "old[v] += sum[row][v];", "old[v] = sum[row][v];"),
    ("kernels.cuh", "bounds", "end = min(begin + split_rows, rows)", "end = begin + split_rows"),
    ("kernels.cuh", "barrier", "    __syncthreads();  // no thread still reads the tile before\n", ""),
    ("kernels.cuh", "barrier", "    }\n    __syncthreads();\n    for (int row", "    }\n    for (int row"),
    ("kernels.cuh", "bounds", "k < columns && n < end ? c.at", "k < columns ? c.at"),
    ("kernels.cuh", "bounds", "k < columns && n < end ? c.at", "n < end ? c.at"),
    ("kernels.cuh", "bounds", "if (k0 + j < columns && d < width)", "if (k0 + j < columns)"),
    ("kernels.cuh", "bounds", "if (k0 + j < columns && d < width)", "if (d < width)"),
    ("kernels.cuh", "arithmetic", "drop(dropout_mask, mask_scale, tile + row, d, width, xs);", ""),
    ("kernels.cuh", "bounds", "if (i >= count) return;", ""),
    ("kernels.cuh", "arithmetic", "for (int s = 0; s < splits; ++s)", "for (int s = splits - 1; s >= 0; --s)"),
    ("kernels.cuh", "arithmetic", "for (int s = 0; s < splits; ++s)", "for (int s = 0; s < 1; ++s)"),
    ("kernels.cuh", "bounds", "constexpr int MOST_COLUMNS = 64;", "constexpr int MOST_COLUMNS = 32;"),
    ("launch.cu", "bounds", "for_access<T>(width, {x, m.first, m.second}", "for_access<T>(width, {m.first, m.second}"),
    ("launch.cu", "bounds", "if (columns <= 16) with", "if (columns <= 17) with"),
    ("cpu.cpp", "bounds", "(x.size(0) + threads - 1) / threads", "x.size(0) / threads"),
    ("cpu.cpp", "arithmetic", "return (x * dropout_mask).mul_(mask_scale);", "return x * dropout_mask;"),
    ("cpu.cpp", "bounds", "z.mutable_data_ptr<T>() + k * N + first", "z.mutable_data_ptr<T>() + k * N"),
    ("cpu.cpp", "arithmetic", "top[i] = std::max<Wide<T>>(top[i], logits[e * n + i])", "top[i] = 0"),
    ("cpu.cpp", "arithmetic", "to[e * N + i] /= sum[i]", "to[e * N + i] /= sum[0]"),
    ("cpu.cpp", "rounding", "T(T(gs[e * N + i] * Wide<T>(scaling)) * zs[k * N + i])", "T(gs[e * N + i] * Wide<T>(scaling) * zs[k * N + i])"),
    ("cpu.cpp", "arithmetic", "sum[i] += gs[e * N + i] * d;", "sum[i] += d;"),
    ("cpu.cpp", "arithmetic", "T(sum[i] * Wide<T>(scaling))", "T(sum[i])"),
    ("cpu.cpp", "rounding", "to[k * n + i] = T(sum[i] * Wide<T>(scaling))", "to[k * n + i] = T(sum[i]) * T(scaling)"),
    ("cpu.cpp", "arithmetic", "(gg[e * n + i] - mean[i])", "gg[e * n + i]"),
    ("cpu.cpp", "rounding", "if (rows.scalar_type() == at::kBFloat16) sum.add_", "if (true) sum.add_"),
    ("cpu.cpp", "bounds", "  require_contiguous({{\"x\", &x}, {\"weight\", &weight}, {\"A\", &A}, {\"W_r\", &W_r}, {\"B\", &B}});\n", ""),
    ("cpu.cpp", "bounds", "x.size(1) > 512 ? std::max<int64_t>(rank + heads, 16) : rank + heads", "rank + heads"),
    ("cpu.cpp", "bounds", "x.size(1) > 512 ?", "true ?"),
    ("cpu.cpp", "arithmetic", "zl.narrow(0, 0, rank).copy_(at::mm(A, kept.t()));", ""),
    ("cpu.cpp", "arithmetic", "if (bias) at::addmm_out(ys, *bias, xs, Wt);\n      else at::mm_out", "at::mm_out"),
    ("cpu.cpp", "arithmetic", "accumulate(sum_A, gz, dropped(xs, kept, mask_scale));", "accumulate(sum_A, gz, xs);"),
    ("cpu.cpp", "arithmetic", "gxs.addmm_(gl.t(), W_r).add_(", "gxs.add_("),
    ("cpu.cpp", "arithmetic", "for (int t = 0; t < threads; ++t)", "for (int t = 0; t < 1; ++t)"),
    ("cpu.cpp", "bounds", "if (sums_B[t].defined()) ", ""),
    ("torch_path.py", "arithmetic", ".mul_(mask_scale).t(), W_r @ x.t()", ".t(), W_r @ x.t()"),
    ("torch_path.py", "rounding", "g = F.softmax(logits, dim=0, dtype=wide(x))", "g = F.softmax(logits, dim=0).to(wide(x))"),
    ("torch_path.py", "arithmetic", "F.softmax(logits, dim=0,", "F.softmax(logits, dim=1,"),
    ("torch_path.py", "arithmetic", "sum(0).mul_(scaling)         # (r, N)", "sum(0)         # (r, N)"),
    ("torch_path.py", "rounding", "(z * gu).sum(1, dtype=g.dtype)", "(z * gu).sum(1)"),
    ("torch_path.py", "arithmetic", "g * (gg - (g * gg).sum(0))", "g * gg"),
    ("torch_path.py", "arithmetic", "gx.addmm_(g_both.t(), torch.cat([A, W_r]))", "gx.addmm_(g_both[:rank].t(), A)"),
    ("torch_path.py", "arithmetic", "return gx, g_stacked[:rank].clone(), g_stacked[rank:].clone(), gB",
     "return gx, g_stacked[:rank], g_stacked[rank:], gB"),
    ("torch_path.py", "arithmetic", ".mul_(dropout_mask), alpha=mask_scale)", ".mul_(dropout_mask))"),
    ("torch_path.py", "arithmetic", "return gx, gz @ (x * dropout_mask).mul_(mask_scale)", "return gx, gz @ x"),
    ("torch_path.py", "rounding", "((g * scaling).to(z.dtype).unsqueeze(1) * z)", "((g * scaling).unsqueeze(1) * z).to(z.dtype)"),
    ("torch_path.py", "rounding", "return torch.float64 if x.dtype == torch.float64 else torch.float32", "return x.dtype"),
]



def first_failure(checks):
    """What the first failing check says, in a few words; None if all pass."""
    for check in checks:
        try:
            check()
        except subprocess.CalledProcessError:
            return "does not compile"
        except (Exception, pytest.fail.Exception) as error:
            return f"{type(error).__name__} {error}".splitlines()[0][:90]
    return None


def apart(work, seconds=300):
    """The result of `work` in a process of its own: a mutant may crash it, or never end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, (work() or "").encode())
        os._exit(0)
    os.close(writer)
    ended = select.select([reader], [], [], seconds)[0]
    if not ended:
        os.kill(child, signal.SIGKILL)
    said = os.read(reader, 1000).decode() if ended else "no end"
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    return said or (f"ended with status {status}" if status else None)


def cuda(mutants):
    """For each mutant of the CUDA sources what its tests say, None for nothing. One program is compiled for each."""
    results = [(shape, *how) for how in ((True, True), (False, False), (True, False), (False, True))
               for shape in emulation.SHAPES]
    schedulers = {}                                         # the same for every mutant
    for file, kind, old, new in mutants:
        with tempfile.TemporaryDirectory() as made:
            # A copy of the folder and of the tests beside it, as the sources include each other by relative paths.
            folder = Path(made)
            shutil.copytree(FOLDER, folder / "crab_mini" / "fused_lora")
            shutil.copytree(HOME / "tests", folder / "tests", ignore=shutil.ignore_patterns("golden", "__pycache__"))
            path = folder / "crab_mini" / "fused_lora" / file
            path.write_text(path.read_text().replace(old, new))
            programs = emulation.Programs(folder, folder / "tests", schedulers)

            # Results before sanitizers, which are slow; but a barrier is what ThreadSanitizer watches.
            to_even = partial(emulation.test_bfloat16_is_rounded_to_nearest_even_bit_for_bit, programs, folder)
            checks = [to_even] * (file == "access.cuh")
            checks.append(partial(emulation.test_large_logits_do_not_overflow, programs, folder))
            checks += [partial(emulation.test_the_shipped_kernels_match_float64_and_do_not_depend_on_the_order,
                               programs, *case, folder) for case in results]
            races = [partial(emulation.test_the_shipped_kernels_have_no_race_and_stay_in_bounds, programs, name,
                             *case, folder) for name in ("asan", "tsan") for case in emulation.SANITIZED]
            yield first_failure(races[::-1] + checks if kind == "barrier" else checks + races)


def cpp(mutants):
    """The same for cpu.cpp. All mutants are compiled at once."""
    # The code between the includes and the module, once for each mutant.
    source = (FOLDER / "cpu.cpp").read_text()
    includes, rest = source.split("namespace {\n", 1)
    body = rest.split("}  // namespace\n")[0]
    copies = [body.replace(old, new) for _, _, old, new in mutants]
    text = includes + "".join(f"namespace m{i} {{ namespace {{\n{copy}}} }}\n" for i, copy in enumerate(copies))
    names = [(name, i) for i in range(len(copies)) for name in ("forward", "backward")]
    text += "PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {\n"
    text += "".join(f'  m.def("{name}{i}", &m{i}::{name});\n' for name, i in names) + "}\n"
    with tempfile.TemporaryDirectory() as folder, build._scripts_on_path():
        (Path(folder) / "mutants.cpp").write_text(text)
        library = cpp_extension.load("mutants", [f"{folder}/mutants.cpp"], extra_cflags=["-O1", "-fopenmp"],
                                     extra_ldflags=["-fopenmp"], build_directory=folder)

    def work():
        """Every test of the C++ kernel that calls it."""
        build.load = lambda *_, **__: (module, None)
        dispatch._decided.clear()
        checks = [lambda t=test: t("cpp") for test in (
            rounding.test_the_router_s_weights_are_float32_and_not_rounded,
            rounding.test_the_sum_over_the_rank_is_rounded_once,
            rounding.test_the_gradient_of_the_logits_is_rounded_to_nearest)]
        checks += [lambda t=test, s=scaling: t("cpp", s) for scaling in (rounding.SCALING, rounding.TIE) for test in (
            rounding.test_u_is_rounded_to_nearest, rounding.test_the_gradient_of_z_is_rounded_to_nearest)]
        for count in (1, 2):
            checks.append(lambda count=count: torch.set_num_threads(count))
            checks += [lambda s=shape, d=dtype, t=tolerance: values.compare("cpp", s, d, t)
                       for shape in compiled.CPP_SHAPES for dtype, tolerance in compiled.TOLERANCES]
            checks += [lambda t=test: t(None) for test in (
                compiled.test_gradcheck_with_the_cpp_kernel, compiled.test_twice_the_same_bits)]
        checks.append(compiled.test_large_logits_do_not_overflow)
        checks.append(compiled.test_mask_strides_nan_and_no_gradient_for_x)
        checks.append(lambda: compiled.test_the_border_of_the_extension_names_the_argument(module))
        return first_failure(checks)

    for i in range(len(mutants)):
        module = types.SimpleNamespace(forward=getattr(library, f"forward{i}"), backward=getattr(library, f"backward{i}"))
        yield apart(work)


def python(mutants):
    """The same for torch_path.py, with pytest in a copy of the project."""
    for file, _, old, new in mutants:
        with tempfile.TemporaryDirectory() as made:
            copy = Path(made) / "project"
            shutil.copytree(HOME, copy, ignore=shutil.ignore_patterns(".git", "runs", "data", "__pycache__"))
            path = copy / "crab_mini" / "fused_lora" / file
            path.write_text(path.read_text().replace(old, new))
            done = subprocess.run([sys.executable, "-m", "pytest", "-qx", "--tb=no", "-p", "no:cacheprovider",
                                   "tests/test_fused_lora.py", "tests/test_fused_lora_rounding.py"],
                                  cwd=copy, capture_output=True, text=True)
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            yield (failed or [f"exit status {done.returncode}"])[0][:90] if done.returncode else None


RUNNERS = {"access.cuh": cuda, "kernels.cuh": cuda, "launch.cu": cuda, "cpu.cpp": cpp, "torch_path.py": python}


def main():
    """Runs the mutants and prints one line for each; the exit status is 1 if any survived."""
    # Which of them.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", choices=tuple(RUNNERS), help="the mutants of one file")
    parser.add_argument("--only", choices=("rounding", "bounds", "arithmetic", "barrier"), help="one kind of line")
    args = parser.parse_args()
    for file, _, old, _ in MUTANTS:
        count = (FOLDER / file).read_text().count(old)
        assert count == 1, f"{file}: {old!r} is there {count} times"

    # A change that changes nothing comes first: if its tests fail, the failures of the others mean nothing.
    alive = total = 0
    for file, runner in RUNNERS.items():
        chosen = [m for m in MUTANTS if m[0] == file and args.file in (None, file) and args.only in (None, m[1])]
        if not chosen:
            continue
        started = time.monotonic()
        for mutant, failure in zip([(file, "", " ", " "), *chosen], runner([(file, "", " ", " "), *chosen])):
            _, kind, old, new = mutant
            assert kind or failure is None, f"{file}: the tests fail without a change: {failure}"
            seconds, started = time.monotonic() - started, time.monotonic()
            total, alive = total + bool(kind), alive + (bool(kind) and failure is None)
            print(f"{'SURVIVED' if failure is None and kind else 'killed' if kind else 'unchanged':9} {seconds:4.0f} s {file} "
                  f"[{kind}] {old.strip()!r} -> {new.strip()!r}  {failure or ''}", flush=True)
    print(f"{total} mutants, {alive} survived")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
