"""The scores: official ones against the golden fixtures, right ones against hand-computed examples and properties."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from crab_mini import metrics as m
from crab_mini.metrics import official

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {key: file[key] for key in file.files}


def near(found, expected, atol=2e-6):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


def each(function, *arrays):
    """A batch function applied to one item at a time."""
    return [function(*(a[i:i + 1] for a in arrays)) for i in range(len(arrays[0]))]


# ---- masks

def test_mask_iou_and_its_official_oddity(golden):
    logits, target = golden["mask/pred_logits"], golden["mask/target"]
    near(each(official.mask_iou, logits, target), golden["mask/iou_each"])
    near(official.mask_iou(logits, target), golden["mask/iou_batch"])
    near(official.mask_iou(logits, target), golden["mask/miou_script"])
    found, empty = m.mask_iou(torch.from_numpy(logits), target), [2, 4]
    near(np.delete(found, empty), np.delete(golden["mask/iou_each"], empty))
    assert found[2] == 0 and found[4] == 1                     # false alarms on nothing; nothing on nothing
    near(m.mask_iou(logits > 0, target.astype(np.uint8)), found)
    assert m.mask_iou(np.zeros_like(golden["mask/zero_logit_target"]), golden["mask/zero_logit_target"]) == [0.0]
    with pytest.raises(ValueError, match=r"one shape \(N,H,W\), found \(6, 14, 11\) and \(5, 14, 11\)"):
        m.mask_iou(logits, target[:5])


def test_f_measure_and_its_official_oddity(golden):
    logits, target = golden["mask/pred_logits"], golden["mask/target"]
    precision, recall = m.precision_recall(logits, target)
    near(precision, golden["mask/prec_curve"])
    near(recall, golden["mask/rec_curve"])
    near(m.f_measure(logits, target), golden["mask/fmeasure_batch"])
    near(each(official.f_measure, logits, target), golden["mask/fmeasure_each"])
    near(official.f_measure(logits, target), golden["mask/fscore_script"])
    zeros = golden["mask/zero_logit_target"]
    near(m.f_measure(np.zeros_like(zeros), zeros), golden["mask/zero_logit_fmeasure"])
    near(m.precision_recall(np.zeros_like(zeros), zeros)[1][0, 126:129], [1, 1, 0])      # 0.5 is the 127th: it counts
    assert math.isnan(m.f_measure(logits, np.zeros_like(target)))
    assert official.f_measure(logits, np.zeros_like(target)) == golden["mask/fmeasure_all_empty"] == 0
    curves = np.concatenate(each(m.f_curve, logits, target))   # batch by batch is the whole
    near(m.max_f(curves), golden["mask/fmeasure_batch"])


def test_f_measure_at_half_by_hand():
    pred = np.array([[[1, 1, 1, 0]], [[0, 0, 0, 0]], [[1, 0, 0, 0]]])
    target = np.array([[[0, 1, 1, 1]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]])
    near(m.f_measure_at_half(pred, target), [2 / 3, 0, np.nan])
    near(m.f_measure_at_half(np.array([[[5.0, -1, 2, 3]]]), np.array([[[1, 1, 1, 1]]])), [1.3 * 0.75 / (0.3 + 0.75)])


def test_null_score(golden):
    near(m.null_score(golden["null/pred_logits"]), golden["null/s_each"])
    near(official.null_score(golden["null/pred_logits"]), golden["null/s_batch"])


# ---- AVSS

@pytest.mark.parametrize("classes", [7, 71])
def test_scores_over_classes(golden, classes):
    def part(name):
        return golden[f"avss{classes}/{name}"]

    iou, f = m.class_iou_f(part("logits"), part("target"), classes)
    near(np.nansum(iou, 0), part("iou_sum"))
    near(np.nansum(f, 0), part("fscore_sum"))
    near((~np.isnan(iou)).sum(0), part("cls_count"))
    near(m.class_mean(iou), part("running_iou"))               # seen classes only, as the per-step print does
    near(m.class_mean(f), part("running_fscore"))
    near([official.class_mean(iou), official.class_mean(iou, background=False)], [part("miou"), part("miou_noBg")])
    near([official.class_mean(f), official.class_mean(f, background=False)], [part("fscore"), part("fscore_noBg")])
    near(official.frame_mean(iou), part("frame_miou"))
    assert (m.frame_mean(iou) <= part("frame_miou") + 1e-6).all()
    labels = part("logits").argmax(1)
    near(m.class_iou_f(torch.from_numpy(labels), part("target"), classes)[0], iou)


def test_scores_over_classes_by_hand():
    pred = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    target = np.array([[[0, 1, 1, 1]], [[0, 0, 2, 2]]])
    iou, f = m.class_iou_f(pred, target, 4)
    near(iou, [[1 / 2, 2 / 3, np.nan, np.nan], [1 / 2, np.nan, 0, np.nan]])
    near(f[0, 1], 1.3 * 2 / 3 / (0.3 + 2 / 3))
    near([m.class_mean(iou), m.class_mean(iou, background=False)], [7 / 18, 1 / 3])
    near(official.class_mean(iou), 7 / 24)
    near(m.frame_mean(iou), [7 / 12, 1 / 4])
    near(official.frame_mean(iou), [7 / 12, 1 / 2])
    assert np.isnan(official.frame_mean(np.zeros((1, 3)))).all()
    with pytest.raises(ValueError, match="pred: expected labels from 0 to 3, found 0 to 4"):
        m.class_iou_f(pred + 4 * (pred == 1) - (pred == 1), target, 4)


# ---- AVVP

def tables_to_events(table):
    """(C,T) -> [(name, start, end)], a run cut in two to show that adjoining spans are one event."""
    events = []
    for name, row in enumerate(table):
        for start, end in m.runs(row.astype(bool)):
            middle = (start + end) // 2
            events += [(str(name), a, b) for a, b in ((start, middle), (middle, end)) if a < b]
    return events


def test_avvp_is_the_official_evaluator(golden):
    tables = [golden[f"avvp/{name}"] for name in ("pred_a", "pred_v", "gt_a", "gt_v")]
    order = [0, 1, 3, 2]                                       # golden columns: A, V, Event@AV, AV
    for level, events in (("segment", False), ("event", True)):
        found = np.stack([m.video_f(*video, events=events) for video in zip(*tables)])
        near(found, golden[f"avvp/{level}_per_video"][:, order], 1e-12)
    said, true = ([{"audio": tables_to_events(a), "visual": tables_to_events(v)} for a, v in zip(*pair)]
                  for pair in (tables[:2], tables[2:]))
    scores = m.avvp_scores(said, true)
    for level in ("segment", "event"):
        near([scores[level][k] for k in ("A", "V", "Event@AV", "AV")], golden[f"avvp/{level}_mean"], 1e-12)
        near(scores[level]["Type@AV"], golden[f"avvp/{level}_type_av"], 1e-12)
        near(scores[level]["Event@AV"], golden[f"avvp/{level}_event_av"], 1e-12)


def test_avvp_by_hand():
    truth = {"audio": [("dog", 0, 4), ("bell", 6, 8)], "visual": [("dog", 2, 6)]}
    said = {"audio": [("dog", 0, 8)], "visual": [("dog", 2, 6)]}
    # audio segments: dog 4 hits 4 false alarms -> 2/3, bell 0; seen and heard: 2..4 against 2..6 -> 2/3
    # events: dog overlaps 4/8 = 0.5, a hit; bell missed; both: 2/4 = 0.5, a hit; pooled: dog 2 hits, bell missed
    near(m.avvp_video(said, truth), [[1 / 3, 1, 2 / 3, 0.5 * (2 * 8 / (2 * 8 + 4))], [0.5, 1, 1, 0.5]])
    perfect = m.avvp_scores([truth], [truth])
    assert set(perfect["event"].values()) == set(perfect["segment"].values()) == {1.0}
    nothing = {"audio": [], "visual": []}
    assert (m.avvp_video(nothing, nothing) == 1).all()
    assert (m.avvp_video(None, nothing) == 0).all()            # unreadable is not the same as empty
    beyond, whole = ({"audio": [("dog", *span)], "visual": []} for span in ((-3, 99), (0, 10)))
    assert (m.avvp_video(beyond, whole) == 1).all()
    with pytest.raises(ValueError):
        m.avvp_scores([truth], [truth, truth])


# ---- AVE, ARIG, AVQA

def test_ave(golden):
    near(m.ave_accuracy(golden["convention/ave_pred"], golden["convention/ave_gt"]).mean(),
         golden["convention/ave_accuracy"], 1e-12)
    said = [m.second_labels(("dog", 2, 6)), m.second_labels(None), m.second_labels(("cat", 0, 10))]
    true = [m.second_labels(("dog", 4, 8)), m.second_labels(("dog", 0, 3)), m.second_labels(("dog", 0, 10))]
    near(m.ave_accuracy(said, true), [0.6, 0.7, 0.0])
    assert m.second_labels(("dog", 1, 2), 3) == ["background", "dog", "background"]
    with pytest.raises(ValueError, match=r"found \(3, 10\) and \(2, 10\)"):
        m.ave_accuracy(said, true[:2])


def test_boxes(golden):
    a, b = golden["box/a"], golden["box/b"]
    iou = official.box_iou(a, b)
    near(iou, golden["box/iou"], 1e-12)
    near(m.success_curve(iou), golden["convention/arig_success_curve"], 1e-12)
    near(m.ciou(iou), golden["convention/arig_ciou_at_0.5"], 1e-12)
    near(m.success_auc(iou), golden["convention/arig_auc"], 1e-12)
    near(m.box_iou(a + 7, b + 7), m.box_iou(a, b), 1e-9)
    near(m.box_iou(a, a), np.ones(len(a)), 0)
    near(m.box_iou([[0, 0, 2, 2], [1, 1, 1, 5], [3, 3, 0, 0], [0, 0, 1, 1]],
                   [[1, 0, 3, 2], [1, 1, 1, 5], [0, 0, 3, 3], [5, 5, 6, 6]]), [1 / 3, 0, 0, 0])
    near([m.success_auc([1.0]), m.success_auc([0.0]), m.ciou([0.5, 0.49])], [1, 0.025, 0.5])


def test_exact_match_by_type():
    types = ["count", "count", "exist", "exist"]
    found = m.exact_match(["Two", None, "yes ", "no"], ["two", "one", "yes", "yes"], types)
    assert found == {"all": (0.5, 4), "count": (0.5, 2), "exist": (0.5, 2)}
    with pytest.raises(ValueError):
        m.exact_match(["a"], ["a", "b"], ["t"])


# ---- captions

def test_mentions():
    names = ["guitar", "acoustic guitar", "guitar solo", "dog", "bus"]
    assert m.event_mentions("a guitar solo", names) == {"guitar solo"}
    assert m.event_mentions("Two dogs bark by an Acoustic Guitar.", names) == {"dog", "acoustic guitar"}
    assert m.event_mentions("buses and a guitarist, hotdog", names) == {"bus"}
    assert m.event_mentions("anything", []) == set()
    scores = m.mention_scores(["a dog and a bus", None], [{"dog", "guitar"}, {"bus"}], names)
    assert scores == {"recall": 1 / 3, "precision": 1 / 2}
    assert m.mention_scores([None], [{"dog"}], names) == {"recall": 0.0, "precision": 0.0}


def test_cider_by_hand():
    references = [["a dog barks"], ["a bell rings"], ["a dog runs"]]
    # idf: a 0, dog ln 3/2, barks = bell = rings = runs ln 3; bigrams: a dog ln 3/2, dog barks, dog runs .. ln 3
    common, rare = math.log(1.5), math.log(3)
    one = common ** 2 / (common ** 2 + rare ** 2)              # unigrams and bigrams alike: one of two shared
    found = m.cider(["a dog runs", "a bell rings", None], references)
    near(found[0], 10 * (one + one + 0 + 0) / 4, 1e-12)
    near(found[1], 10 * (1 + 1 + 1 + 0) / 4, 1e-12)            # three words have no 4-gram
    assert found[2] == 0
    near(m.cider(["dog", "cat"], [["dog dog", "dog"], ["cat"]]), [2.5, 2.5], 1e-12)      # idf counts clips, not words
    unseen = m.cider(["a dog dog zebra"], [["a dog barks"]])   # a corpus of one clip: every idf is 0
    assert unseen[0] == 0


def test_cider_properties():
    references = [["a dog barks while a bell rings", "the dog is heard and the bell too"],
                  ["a siren sounds on the left side", "one hears a siren from the left"], ["a flute is played alone"]]
    same = m.cider([refs[0] for refs in references], [refs[:1] for refs in references])
    near(same, [10, 10, 10], 1e-9)
    swapped = m.cider([references[1][0], references[0][0], references[2][0]], references)
    assert swapped[0] < same[0] / 5 and swapped[1] < same[1] / 5
    repeated = m.cider(["A DOG barks, while a bell rings!"] * 3, [refs[:1] for refs in references])
    near(repeated[0], 10, 1e-9)                                # case and punctuation do not count


# ---- intervals

def test_bootstrap_interval():
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 0.2, 400)
    low, high = m.bootstrap_interval(values)
    assert low < values.mean() < high
    error = 1.96 * values.std() / 20                           # the normal approximation of a mean's interval
    near([low, high], [values.mean() - error, values.mean() + error], 0.0022)
    assert m.bootstrap_interval(values) == (low, high) != m.bootstrap_interval(values, seed=1)
    assert m.bootstrap_interval([0.25]) == (0.25, 0.25)
    narrow = m.bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    table = np.stack([values, np.full(400, np.nan)], 1)
    near(m.bootstrap_interval(table, m.class_mean), (low, high), 1e-12)
    with pytest.raises(ValueError, match="at least one value"):
        m.bootstrap_interval([])
