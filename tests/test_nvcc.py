"""Where nvcc is installed: launch.cu compiles for every architecture from sm_75 to sm_120, without a spill.

Proves what ptxas reports and nothing about speed. Slow: a minute and a half.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "crab_mini" / "fused_lora" / "launch.cu"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Registers a thread by the sums that a row's tile holds: 168 let three blocks of a shrink kernel share an SM. The
# kernels without a tile are held to 128.
MOST_REGISTERS = {16: 168, 32: 168, 64: 255, None: 128}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")]


@pytest.fixture(scope="module")
def architectures():
    """Those of ARCHITECTURES that this nvcc knows."""
    listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    known = [a for a in ARCHITECTURES if f"sm_{a}" in listed]
    assert known, f"nvcc knows none of {ARCHITECTURES}: {listed}"
    return known


def test_no_spills_and_few_registers(architectures, tmp_path):
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    targets.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    command = ["nvcc", "-O3", "-std=c++17", "--threads", "2", *targets, "-Xptxas", "-v", "-c", str(SOURCE), "-o",
               str(tmp_path / "launch.o")]
    report = subprocess.run(command, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    entries = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill "
                         r"stores, (\d+) bytes spill loads.*?Used (\d+) registers", report.stderr, re.DOTALL)
    assert {a for _, a, *_ in entries} == {f"sm_{a}" for a in architectures}
    kinds = {re.search(r"(shrink_softmax|shrink_collect|expand|wgrad|sum_splits)", name)[0] for name, *_ in entries}
    assert len(kinds) == 5 and len(entries) == 34 * len(architectures)
    for name, architecture, stack, stores, loads, registers in entries:
        assert stack == stores == loads == "0", (name, architecture, stack, stores, loads)
        tile = re.search(r"shrink_\w+?Li\d+ELi(\d+)E", name)
        assert int(registers) <= MOST_REGISTERS[tile and int(tile[1])], (name, architecture, registers)


def test_both_dtypes_are_read_sixteen_bytes_at_a_time(architectures, tmp_path):
    target = tmp_path / "launch.ptx"
    subprocess.run(["nvcc", "-O3", "-std=c++17", "-ptx", f"-arch=compute_{architectures[0]}", str(SOURCE), "-o",
                    str(target)], check=True, capture_output=True)
    kernels = re.split(r"\.visible \.entry ", target.read_text())[1:]
    for kernel in kernels:
        name = kernel.split("(")[0]
        wide = re.search(r"bfloat16ELi8E|IfLi4E", name) is not None       # the variants for aligned rows
        assert wide == bool(re.search(r"ld\.global(\.nc)?\.v4\.[fub]32", kernel)), name
        assert "asm" not in kernel and "mma." not in kernel and "atom." not in kernel, name


def test_the_ladder_compiles_too(architectures, tmp_path):
    source = tmp_path / "ladder.cu"
    steps = ["one_thread_one_sum", "one_warp_one_sum", "one_warp_one_row<16, const float*>",
             "one_warp_four_rows<16, const float*>"]
    source.write_text('#include "ladder.cuh"\n' + "".join(
        f"template __global__ void crab::ladder::{step}(const float*, const float*, float*, int, int, int);\n"
        for step in steps))
    command = ["nvcc", "-O3", "-std=c++17", f"-arch=sm_{architectures[-1]}", "-I", str(SOURCE.parent), "-Xptxas", "-v",
               "-c", str(source), "-o", str(tmp_path / "ladder.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"(\d+) bytes spill stores", result.stderr) == ["0"] * 4
