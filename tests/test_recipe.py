"""The recipe: seven stages in order, whose dependencies exist, and each freezes the rest."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from crab_mini.config import preset
from crab_mini.model.crab import Crab, SpecialIds
from crab_mini.options import STAGES
from crab_mini.stages.clips import TrainingClips
from crab_mini.stages.recipe import INTERFACE_LR, Stage, facts, recipe
from crab_mini.stages.rows import AnnotationSampler
from crab_mini.stages.text import ScriptEmbeddings
from crab_mini.world.scene import CATEGORIES

INTERFACES = {"visual_qformer", "audio_qformer", "mask_prompt", "segmentation"}
TRAINED = {                                     # parts of Crab that a stage changes
    "text": {"llm", "mask_prompt"}, "see": {"vision"}, "hear": {"audio"},
    "speak": {"visual_qformer", "audio_qformer"}, "segment": {"segmentation", "mask_prompt"},
    "align": INTERFACES, "instruct": INTERFACES | {"llm"},
}


def never():
    pytest.fail("data were read")


@pytest.fixture(scope="module")
def crab() -> Crab:
    return Crab(preset("nano"), SpecialIds(4, 5, (6, 11), 3))


@pytest.fixture(scope="module")
def stages(crab) -> list[Stage]:
    """The recipe without data: there is no folder of clips, and opening annotations fails."""
    script = ScriptEmbeddings(crab, list(CATEGORIES))
    return recipe(crab, script, SimpleNamespace(pad=0), TrainingClips(Path("nowhere"), None),
                  AnnotationSampler(never))


def test_the_stages_are_those_of_the_options_in_order(stages):
    assert tuple(stage.name for stage in stages) == STAGES


def test_every_dependency_exists_and_comes_earlier(crab, stages):
    known = set(facts(crab, SimpleNamespace(model=b""), Path("clips"), {}, ["ave"], Path("data")))
    assert not known & set(STAGES)
    for stage in stages:
        assert set(stage.depends) <= known, stage.name
        assert len(set(stage.depends)) == len(stage.depends), stage.name
        known.add(stage.name)
    used = {"instruct"}.union(*(stage.depends for stage in stages))
    assert known == used                                        # none is there in vain


def test_the_batches_of_a_stage_read_nothing_before_they_are_asked(stages):
    for stage in stages:
        assert callable(stage.batches().at) and callable(stage.batches().ids), stage.name


def test_a_stage_trains_what_the_recipe_says_and_freezes_the_rest(crab, stages):
    for stage in stages:
        if stage.lora:
            crab.with_lora("torch")
        stage.module()
        trained = {name.split(".")[0] for name, p in crab.named_parameters() if p.requires_grad}
        assert trained == TRAINED[stage.name], stage.name
    last = stages[-1]
    names = [name for name, p in crab.llm.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert {last.lr_scale(name) for name in names} == {1.0}
    assert last.lr_scale("crab.mask_prompt.weight") == INTERFACE_LR


def test_a_change_of_the_model_or_the_reasoning_changes_a_fact(crab):
    def of(cfg):
        stub = SimpleNamespace(cfg=cfg)
        return facts(stub, SimpleNamespace(model=b""), Path("clips"), {}, ["ave"], Path("data"))
    before = of(crab.cfg)
    for change, name in ((dict(reasoning="off"), "reasoning"),
                         (dict(mask=dataclasses.replace(crab.cfg.mask, layers=2)), "model"),
                         (dict(world=dataclasses.replace(crab.cfg.world, clips=5)), "clips"),
                         (dict(lora=dataclasses.replace(crab.cfg.lora, heads=1)), "lora")):
        after = of(dataclasses.replace(crab.cfg, **change))
        assert {key for key in before if before[key] != after[key]} == {name}


def test_every_stage_draws_with_a_seed_of_its_own(crab, stages):
    seeds = [stage.batches().seed for stage in stages]
    assert len(set(seeds)) == len(seeds) and crab.cfg.seed not in seeds
