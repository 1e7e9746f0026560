"""Two hosts (network namespaces with a cable between them): a lossy link, and one that is cut in the middle.

Root, `ip` and, for the losses, the kernel's netem are needed; only veth and loopback devices are touched.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crab_mini.training.progress import read_curve

from . import good

pytestmark = [pytest.mark.long, pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"),
    reason="needs root, ip and tc")]
HOSTS = ("crab_a", "crab_b")                # namespaces
MINUTE = 60
STEPS = 30


def command(*words: str) -> None:
    """Runs a command of the system; the test is skipped where that cannot be."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(words)}: {done.stderr.strip()}")


def inside(host: str, *words: str) -> tuple[str, ...]:
    """A command inside a namespace."""
    return ("ip", "netns", "exec", host, *words)


@pytest.fixture
def hosts():
    """Two namespaces, 10.77.0.1 and 10.77.0.2."""
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True)
    try:
        for host in HOSTS:
            command("ip", "netns", "add", host)
        command("ip", "link", "add", "veth_a", "netns", HOSTS[0], "type", "veth", "peer", "veth_b", "netns", HOSTS[1])
        for number, host in enumerate(HOSTS, 1):
            device = f"veth_{host[-1]}"
            command(*inside(host, "ip", "address", "add", f"10.77.0.{number}/24", "dev", device))
            command(*inside(host, "ip", "link", "set", device, "up"))
            command(*inside(host, "ip", "link", "set", "lo", "up"))
        yield HOSTS
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def begin(place: Path, folder: Path) -> list[subprocess.Popen]:
    """train.py under torchrun on both hosts; the run's folder is shared, as on a network disk."""
    source = str(Path(__file__).resolve().parents[2])
    processes = []
    for rank, host in enumerate(HOSTS):
        env = os.environ | {"GLOO_SOCKET_IFNAME": f"veth_{host[-1]}", "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank),
                 "--nproc_per_node", "1", "--master_addr", "10.77.0.1", "--master_port", "29577",
                 f"{source}/train.py", *arguments(place)]
        with open(folder / f"host_{rank}.txt", "w") as file:
            processes.append(subprocess.Popen(inside(host, *words), env=env, stdout=file, stderr=file,
                                              start_new_session=True))
    return processes


def arguments(place: Path) -> list[str]:
    """The last stage; the first of its steps are quick to reach."""
    return [*good.TRAIN, "--instruct.steps", str(STEPS), "--instruct.muon_lr", "0", "--out", str(place)]


def prepared(place: Path) -> Path:
    """A run with all stages but the last."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good.ROOT / "run", place, ignore=shutil.ignore_patterns("instruct*", "crab.pt"))
    return place


def ended(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Their statuses; what is not over in time is killed and fails the test."""
    end, late = time.monotonic() + seconds, []
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            late.append(process.args[3])
            os.killpg(process.pid, 9)
            process.wait()
    assert not late, f"not over after {seconds:.0f} s: {late}"
    return [process.returncode for process in processes]


def losses(run: Path) -> list[float]:
    """The last stage's losses by row of its curve."""
    return [row["text"] if "text" in row else sum(v for k, v in row.items() if k not in ("step", "seconds", "rate"))
            for row in read_curve(run / "instruct.jsonl")]


@pytest.fixture
def alone(folder):
    """The losses of one process."""
    place = prepared(folder / "alone")
    assert good.PROGRAMS["train"](arguments(place)) == 0
    return losses(place)


def test_a_lossy_link_changes_no_loss(hosts, alone, folder):
    for host in HOSTS:
        command(*inside(host, "tc", "qdisc", "add", "dev", f"veth_{host[-1]}", "root", "netem", "loss", "3%", "delay",
                        "5ms"))
    place = prepared(folder / "lossy")
    assert ended(begin(place, folder), 5 * MINUTE) == [0, 0], (folder / "host_0.txt").read_text()[-500:]
    assert losses(place) == pytest.approx(alone, rel=1e-3)


def test_a_cut_link_ends_the_run_and_one_process_goes_on(hosts, alone, folder):
    place = prepared(folder / "cut")
    processes = begin(place, folder)
    end = time.monotonic() + 3 * MINUTE
    while len(losses(place)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(losses(place)) < STEPS, "the run was over before the link was cut"
    command(*inside(HOSTS[1], "ip", "link", "set", "veth_b", "down"))
    assert 0 not in ended(processes, MINUTE)
    said = (folder / "host_0.txt").read_text()
    assert "train.py: " in said and "Traceback" not in said, said[-1000:]
    assert good.PROGRAMS["train"]([*arguments(place), "--resume"]) == 0
    assert losses(place) == pytest.approx(alone, rel=1e-3)
