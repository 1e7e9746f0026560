"""The loop: resumable bit for bit, stops cleanly, skips what is done, and its parts do what they say."""

import json
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from crab_mini.checkpoint import CheckpointError, load
from crab_mini.config import LoRAConfig, StageConfig
from crab_mini.lora import attach
from crab_mini.optimiser import COOLDOWN, Optimiser, hidden_matrices, parameter_groups, schedule
from crab_mini.progress import Curve, Meter, read_curve
from crab_mini.training import Interrupted, NonFiniteLoss, Run, _move, fit, seed_all

CFG = StageConfig(steps=20, lr=1e-2, muon_lr=0.02, warmup=3)


class Toy(nn.Module):
    """Two hidden matrices, an embedding, a head, dropout (draws random numbers), a buffer, and a frozen part."""

    def __init__(self):
        super().__init__()
        seed_all(0)
        self.embed, self.hidden, self.head = nn.Embedding(50, 32), nn.Linear(32, 48), nn.Linear(48, 50)
        self.frozen = nn.Linear(32, 32).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    def losses(self, batch):
        ids, weights = batch
        self.seen += 1
        hidden = nn.functional.dropout(torch.tanh(self.hidden(self.frozen(self.embed(ids)))), 0.1, self.training)
        loss = nn.functional.cross_entropy(self.head(hidden).float(), (ids * 7 + 3) % 50, reduction="none")
        return {"next": ((loss * weights).sum(), weights.sum()),
                "size": (hidden.square().sum(), torch.tensor(hidden.numel()))}


@dataclass
class Item:
    tensors: list
    name: str


class Batches:
    """A pure function of the step; `at_step` runs a function when a step's batch is asked for."""

    def __init__(self, at_step=None, act=None):
        self.at_step, self.act = at_step, act

    def at(self, step):
        if step == self.at_step:
            self.act()
        rng = torch.Generator().manual_seed(step)
        return torch.randint(50, (16,), generator=rng), (torch.rand(16, generator=rng) > 0.3).float()

    def ids(self, step):
        return [f"{step}-{i}" for i in range(16)]


def run_toy(out, cfg=CFG, batches=None, module=None, depends=None, minutes=None, **run):
    module = module or Toy()
    mark = fit("toy", module, batches or Batches(), cfg, depends or {"width": 32}, Run(out, **run), minutes)
    return module, mark


def losses_of(out):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_curve(out / "toy.jsonl")]


def interrupt(number=signal.SIGINT):
    return lambda: signal.raise_signal(number)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_steps_equal_ten_resume_ten(tmp_path, precision):
    whole, _ = run_toy(tmp_path / "whole", precision=precision)
    with pytest.raises(Interrupted, match=r"step 10 of 20.*--resume"):
        run_toy(tmp_path / "parts", batches=Batches(9, interrupt()), precision=precision)
    content = load(tmp_path / "parts" / "toy.pt", "toy")
    assert content["step"] == 10 and not content["done"]
    torch.rand(5)                                       # whatever the process draws in between
    parts, _ = run_toy(tmp_path / "parts", precision=precision, resume=True)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")
    assert len(losses_of(tmp_path / "whole")) == 20
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))


def test_losses_fall_and_frozen_parts_stay(tmp_path):
    module, _ = run_toy(tmp_path, replace(CFG, steps=100))
    rows = losses_of(tmp_path)
    first, last = (sum(row["next"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < 0.8 * first
    assert torch.equal(module.frozen.weight, Toy().frozen.weight) and module.frozen.weight.grad is None
    assert not module.training
    kept = set(load(tmp_path / "toy.pt", "toy")["module"])
    assert kept == {name for name in module.state_dict() if not name.startswith("frozen")}


def test_a_finished_stage_is_taken_from_its_checkpoint(tmp_path, capsys):
    trained, mark = run_toy(tmp_path)
    capsys.readouterr()
    again, same = run_toy(tmp_path, batches=Batches(0, lambda: pytest.fail("it trained again")))
    assert same == mark and not again.training and "toy.pt (made in 20 steps" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values()))
    drawn = torch.manual_seed(123).get_state()
    run_toy(tmp_path / "anew", module=again)
    assert torch.equal(torch.get_rng_state(), drawn)     # training draws nothing from the caller's stream


@pytest.mark.parametrize("change", [dict(depends={"width": 33}), dict(seed=1), dict(precision="bf16"),
                                    dict(cfg=replace(CFG, lr=2e-2)), dict(minutes=3.0)])
def test_another_configuration_is_refused_and_keeps_the_file(tmp_path, change):
    run_toy(tmp_path)
    before = (tmp_path / "toy.pt").read_bytes()
    with pytest.raises(CheckpointError, match="another configuration"):
        run_toy(tmp_path, **change)
    assert (tmp_path / "toy.pt").read_bytes() == before


def test_another_module_is_refused(tmp_path):
    run_toy(tmp_path)
    other = Toy()
    other.head = nn.Linear(48, 51)
    with pytest.raises(CheckpointError, match=r"toy.pt: head.weight: expected \[51, 48\], found \[50, 48\]"):
        run_toy(tmp_path, module=other)


def test_without_resume_a_stopped_stage_starts_anew_and_says_so(tmp_path, capsys):
    with pytest.raises(Interrupted):
        run_toy(tmp_path, batches=Batches(4, interrupt(signal.SIGTERM)))
    run_toy(tmp_path)
    assert "starts anew" in capsys.readouterr().out
    assert [row["step"] for row in losses_of(tmp_path)] == list(range(1, 21))


def test_a_stop_in_the_last_step_finishes_the_stage_but_not_the_run(tmp_path):
    with pytest.raises(Interrupted, match="finished, saved"):
        run_toy(tmp_path, batches=Batches(19, interrupt()))
    assert load(tmp_path / "toy.pt", "toy")["done"]


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_toy(tmp_path, batches=Batches(3, interrupt()))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_gradients_are_clipped(tmp_path):
    module, _ = run_toy(tmp_path, replace(CFG, clip=1e-20, muon_lr=0.0, weight_decay=0.0))
    torch.testing.assert_close(module.head.weight, Toy().head.weight, rtol=0, atol=1e-8)


def test_a_batch_moves_with_all_it_holds():
    item = Item([torch.ones(2), None], "name")
    moved = _move((item, torch.ones(3)), torch.device("meta"))
    assert moved[0].tensors[0].is_meta and moved[1].is_meta and moved[0].name == "name"
    assert moved[0].tensors[1] is None and not item.tensors[0].is_meta


def test_where_nobody_watches_a_plain_line_tells_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("crab_mini.progress.QUIET", 0.0)
    run_toy(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20 and lines[9].startswith("toy 10/20 50%, 00:00 gone, 00:00 left, next 3.")


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(*_):          # through the handlers: with a second thread at work two raised signals may arrive as one
        for _ in range(2):
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)

    module = Toy()
    module.hidden.register_forward_hook(twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # in a shell's background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt) as found:
            run_toy(tmp_path, module=module)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(found.value, Interrupted) and not (tmp_path / "toy.pt").exists()


def test_a_non_finite_loss_stops_before_the_step(tmp_path):
    with pytest.raises(Interrupted):
        run_toy(tmp_path, batches=Batches(4, interrupt()))
    before = (tmp_path / "toy.pt").read_bytes()
    module = Toy()
    weight = {}

    def poison():
        weight["before"] = module.head.weight.clone()
        module.hidden.register_forward_hook(lambda *args: args[2] * float("nan"))

    with pytest.raises(NonFiniteLoss, match=r"toy: step 8: the loss 'next' is nan, samples 8-0, 8-1.* and 8 more; "
                                            r".*toy.pt is the last good checkpoint"):
        run_toy(tmp_path, batches=Batches(8, poison), module=module, resume=True)
    assert torch.equal(module.head.weight, weight["before"]) and (tmp_path / "toy.pt").read_bytes() == before


def test_a_non_finite_gradient_names_its_parameter(tmp_path):
    module = Toy()
    module.hidden.weight.register_hook(lambda g: g * float("inf"))
    head = module.head.weight.clone()
    with pytest.raises(NonFiniteLoss, match="step 0: the gradient of hidden.weight.*no checkpoint was written"):
        run_toy(tmp_path, module=module)
    assert torch.equal(module.head.weight, head)


def test_checkpoints_are_written_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("crab_mini.training.SAVE_SECONDS", 0.0)
    seen = []
    run_toy(tmp_path, batches=Batches(7, lambda: seen.append(load(tmp_path / "toy.pt", "toy")["step"])))
    assert seen == [7]


def test_a_budget_ends_the_stage_with_the_rate_run_out(tmp_path, monkeypatch):
    clock = iter(range(0, 10000, 3))                     # three seconds a look
    monkeypatch.setattr("crab_mini.training.time.monotonic", lambda: float(next(clock)))
    run_toy(tmp_path, replace(CFG, steps=1000), minutes=1.0)
    content = load(tmp_path / "toy.pt", "toy")
    assert content["done"] and 60 <= content["seconds"] < 70 and content["step"] < 25
    assert read_curve(tmp_path / "toy.jsonl")[-1]["rate"] < 0.15


def test_making_the_data_ready_is_no_training_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("crab_mini.training.time.monotonic", lambda: now[0])

    def encode():
        now[0] += 500 * (now[0] == 0)                    # the first time a batch is asked for
    run_toy(tmp_path, replace(CFG, steps=5), batches=Batches(0, encode), minutes=1.0)
    assert load(tmp_path / "toy.pt", "toy")["step"] == 5


def test_a_resumed_stage_goes_on_counting_its_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("crab_mini.training.time.monotonic", iter([100.0] + [142.0] * 99).__next__)
    with pytest.raises(Interrupted):
        run_toy(tmp_path, batches=Batches(2, interrupt()), minutes=1.0)
    monkeypatch.setattr("crab_mini.training.time.monotonic", iter([500.0] * 3 + [505.0] * 99).__next__)
    with pytest.raises(Interrupted):
        run_toy(tmp_path, batches=Batches(6, interrupt()), minutes=1.0, resume=True)
    assert load(tmp_path / "toy.pt", "toy")["seconds"] == 47.0


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/out/toy.jsonl: cannot be written"):
        run_toy(tmp_path / "file" / "out", batches=Batches(0, lambda: pytest.fail("it trained")))


def test_who_moves_what():
    module = Toy()
    assert hidden_matrices(module) == {"hidden.weight", "frozen.weight"}
    groups = parameter_groups(module, CFG, rate=lambda name: 0.1 if name.startswith("embed") else 1.0)
    found = {name: (g["kind"], g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert found == {"embed.weight": ("adamw", 1e-3, 0.01), "hidden.weight": ("muon", 0.02, 0.01),
                     "hidden.bias": ("adamw", 0.01, 0.0), "head.weight": ("adamw", 0.01, 0.01),
                     "head.bias": ("adamw", 0.01, 0.0)}
    assert all(g["kind"] == "adamw" for g in parameter_groups(module, replace(CFG, muon_lr=0.0)))
    with pytest.raises(ValueError, match="no parameter is trainable"):
        parameter_groups(module.requires_grad_(False), CFG)


def test_where_there_is_lora_muon_moves_its_factors_and_nothing_else():
    module = nn.ModuleDict({"interface": nn.Linear(64, 64), "llm": nn.Sequential(nn.Linear(64, 48))})
    attach(module["llm"], LoRAConfig(rank=4, heads=3))
    optimiser = Optimiser(groups := parameter_groups(module, replace(CFG, weight_decay=0.0)))
    kinds = {name: g["kind"] for g in groups for name in g["names"]}
    assert kinds == {"interface.weight": "adamw", "interface.bias": "adamw", "llm.0.lora_route": "adamw",
                     "llm.0.lora_A": "factors", "llm.0.lora_B": "factors"}
    layer, before = module["llm"][0], {name: p.clone() for name, p in module.named_parameters()}
    for p in optimiser.parameters:
        p.grad = torch.randn_like(p)
    optimiser.step(0.5)
    for name, p in (("llm.0.lora_A", layer.lora_A), ("llm.0.lora_B", layer.lora_B)):     # each head by itself
        spectrum = torch.linalg.svdvals((before[name] - p).detach()) / (0.5 * CFG.muon_lr)
        assert 0.5 < spectrum.min() and spectrum.max() < 1.5, spectrum


def test_the_optimiser_moves_each_group_at_its_rate():
    module = Toy()
    optimiser = Optimiser(parameter_groups(module, replace(CFG, weight_decay=0.0)))
    before = {name: p.clone() for name, p in module.named_parameters()}
    for p in optimiser.parameters:
        p.grad = torch.ones_like(p) + 1e-3 * torch.randn_like(p)
    optimiser.step(0.5)
    moved = {name: (before[name] - p).detach() for name, p in module.named_parameters()}
    assert torch.allclose(moved["head.weight"], torch.full_like(moved["head.weight"], 0.005), rtol=1e-3)   # AdamW
    spectrum = torch.linalg.svdvals(moved["hidden.weight"])                                                # Muon
    assert 0.5 < spectrum[0] / (0.01 * (48 / 32) ** 0.5) < 1.5
    assert moved["frozen.weight"].abs().max() == 0


def test_the_schedule_warms_up_stays_and_runs_out():
    rates = [schedule(step, step / 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert set(rates[10:100 - round(100 * COOLDOWN) + 1]) == {1.0}
    assert all(a > b for a, b in zip(rates[45:], rates[46:])) and 0 < rates[-1] < 0.02
    assert schedule(5, 1.2, 0) == 0.0


def test_curve_and_meter(tmp_path):
    meter = Meter()
    meter.add({"text": (6.0, 2.0), "mask": (0.0, 0.0)})
    meter.add({"text": (2.0, 2.0)})
    assert meter.take() == {"text": 2.0, "mask": 0.0} and meter.take() == {}
    curve = Curve(tmp_path / "c.jsonl", 0)
    for step in (1, 2, 3):
        curve.add({"step": step})
    with open(curve.path, "a") as file:
        file.write('{"step": 4, "te')                    # a run that was killed
    Curve(curve.path, 2)
    assert [json.loads(line)["step"] for line in curve.path.read_text().splitlines()] == [1, 2]
