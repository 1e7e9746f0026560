"""Answers to every exercise of the tutorials: right ones, and wrong ones that students hand in.

    ANSWERS[exercise].right     name -> function
    ANSWERS[exercise].wrong     name -> (function, the beginning of the property that it breaks)

A family is one function of a bug's name: `family(None)` is right, `family("no scale")` has that one
mistake. The second element of a wrong answer begins the name of the property by which the check
must reject it.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from crab_mini.av_uie.log_mel import mel_banks
from crab_mini.model.crab import Crab, SpecialIds
from crab_mini.model.qformer import cells, place_code


@dataclass
class Answers:
    """What is known about one exercise's answers."""

    right: dict = field(default_factory=dict)
    wrong: dict = field(default_factory=dict)


ANSWERS: dict[str, Answers] = {}


def family(exercise: str, **bugs: str):
    """Decorator of a function (bug) -> answer. bugs: name -> the beginning of the property that it
    breaks."""

    def add(make):
        known = ANSWERS.setdefault(exercise, Answers())
        known.right[make.__name__] = make(None)
        known.wrong |= {bug: (make(bug), reason) for bug, reason in bugs.items()}
        return make

    return add


def right(exercise: str):
    """Decorator of another right answer."""

    def add(answer):
        ANSWERS.setdefault(exercise, Answers()).right[answer.__name__] = answer
        return answer

    return add


def wrong(exercise: str, reason: str):
    """Decorator of another wrong answer."""

    def add(answer):
        ANSWERS.setdefault(exercise, Answers()).wrong[answer.__name__] = answer, reason
        return answer

    return add


# 01: what the model's words mean ----------------------------------------------------------------


@family(
    "parse_ave",
    one_digit="numbers may have two digits",
    reversed_kept="a range that ends before it begins",
    end_included="a plain answer is read",
    numbers_as_text="a plain answer is read",
    blanks_kept="blanks inside",
    one_word="names of several words",
    greedy="tags that come twice",
    empty_instead_of_none="an answer that cannot be read",
)
def ave_by_two_searches(bug):
    digits = r"(\d)" if bug == "one_digit" else r"(\d+)"
    name = {
        "blanks_kept": r"<event>(.+?)</event>",
        "one_word": r"<event>\s*([\w-]+)\s*</event>",
        "greedy": r"<event>\s*(.+)\s*</event>",
    }.get(bug, r"<event>\s*(.+?)\s*</event>")

    def answer(text):
        event, span = (
            re.search(name, text),
            re.search(rf"<range>\s*{digits}\s*,\s*{digits}\s*</range>", text),
        )
        if event is None or span is None:
            return ("", 0, 0) if bug == "empty_instead_of_none" else None
        start, end = int(span[1]), int(span[2])
        if start > end and bug != "reversed_kept":
            return None
        if bug == "numbers_as_text":
            return event[1], span[1], span[2]
        name_said = event[1].strip() if bug == "greedy" else event[1]
        return name_said, start, end + 1 if bug == "end_included" else end

    return answer


@right("parse_ave")
def ave_by_splitting(text):
    try:
        name = text.split("<event>")[1].split("</event>")
        span = text.split("<range>")[1].split("</range>")
        start, end = map(int, span[0].split(","))
    except (IndexError, ValueError):
        return None
    return None if len(name) < 2 or len(span) < 2 or start > end else (name[0].strip(), start, end)


@family(
    "parse_avvp",
    one_digit="numbers may have two digits",
    first_tag_only="all tags of a text",
    first_span_only="all spans of a tag",
    one_list="both senses are read",
    silence_is_none="silence that is said",
    never_none="an answer that cannot be read",
    senses_swapped="both senses are read",
)
def avvp_by_findall(bug):
    span = r"\((\d) (\d)\)" if bug == "one_digit" else r"\((\d+)\s+(\d+)\)"

    def answer(text):
        events, found = (
            {"audio": [], "visual": []},
            re.findall(r"<(audio|visual)_event>(.*?)</\1_event>", text),
        )
        if bug == "first_tag_only":
            found = [next((f for f in found if f[0] == kind), None) for kind in ("audio", "visual")]
            found = [f for f in found if f]
        for kind, inner in found:
            if bug == "senses_swapped":
                kind = {"audio": "visual", "visual": "audio"}[kind]
            name = inner.split(",")[0].strip()
            spans = re.findall(span, inner)
            for start, end in spans[:1] if bug == "first_span_only" else spans:
                events["audio" if bug == "one_list" else kind].append((name, int(start), int(end)))
        silent = (
            "no audio event" in text or "no visual event" in text
        ) and bug != "silence_is_none"
        return events if found or silent or bug == "never_none" else None

    return answer


@right("parse_avvp")
def avvp_tag_by_tag(text):
    found, events = False, {"audio": [], "visual": []}
    for match in re.finditer(r"<(audio|visual)_event>\s*([^,(]+),(.*?)</", text):
        found = True
        for a, b in re.findall(r"(\d+) (\d+)", match[3]):
            events[match[1]] += [(match[2].strip(), int(a), int(b))]
    return events if found or re.search("no (audio|visual) event", text) else None


@family(
    "parse_arig",
    first_corners="the last two corners",
    two_digits="numbers may have three",
    any_box="a box without area",
    upright_only="a box without area",
    fails_on_one="fewer than two corners",
    no_blanks="blanks inside the brackets",
)
def arig_by_findall(bug):
    gap, digits = (
        "" if bug == "no_blanks" else r"\s*",
        r"(\d{1,2})" if bug == "two_digits" else r"(\d+)",
    )

    def answer(text):
        found = [
            tuple(map(int, c))
            for c in re.findall(rf"\({gap}{digits}{gap},{gap}{digits}{gap}\)", text)
        ]
        if len(found) < 2 and bug != "fails_on_one":
            return None
        (x0, y0), (x1, y1) = found[:2] if bug == "first_corners" else found[-2:]
        fits = x0 < x1 and (bug == "upright_only" or y0 < y1)
        return (x0, y0, x1, y1) if fits or bug == "any_box" else None

    return answer


@right("parse_arig")
def arig_by_numbers(text):
    numbers = [
        [int(n) for n in re.findall(r"\d+", part)] for part in re.findall(r"\([\s\d,]*\)", text)
    ]
    corners = [n for n in numbers if len(n) == 2][-2:]
    if len(corners) == 2 and all(a < b for a, b in zip(*corners)):
        return tuple(corners[0] + corners[1])


# 02: the world ----------------------------------------------------------------------------------


@family(
    "spans_of_both",
    union="only seconds of both",
    inclusive_end="the end is the second after",
    gaps_bridged="a gap of one second",
    last_run_lost="a run may reach",
    first_run_lost="a run may reach",
    heard_alone="only seconds of both",
)
def spans_by_walking(bug):
    def answer(seen, heard):
        both = {"union": seen | heard, "heard_alone": heard}.get(bug, seen & heard).tolist()
        if bug == "gaps_bridged":
            both = [
                b or 0 < t < len(both) - 1 and both[t - 1] and both[t + 1]
                for t, b in enumerate(both)
            ]
        found, start = [], None
        for t, on in enumerate(both + ([] if bug == "last_run_lost" else [False])):
            if on and start is None:
                start = t
            if not on and start is not None:
                if not (bug == "first_run_lost" and start == 0):
                    found.append((start, t - 1 if bug == "inclusive_end" else t))
                start = None
        return found

    return answer


@right("spans_of_both")
def spans_by_differences(seen, heard):
    steps = np.diff(np.pad((seen & heard).astype(int), 1))
    return [[int(a), int(b)] for a, b in zip(np.where(steps == 1)[0], np.where(steps == -1)[0])]


@family(
    "second_labels",
    inclusive_end="the first second is in",
    ten_always="there is a label for each second",
    fails_on_none="None is background",
    blank_background="other seconds are background",
    late_start="the first second is in",
)
def labels_by_second(bug):
    def answer(event, seconds=10):
        if event is None and bug != "fails_on_none":
            return ["background"] * seconds
        name, start, end = event
        end += bug == "inclusive_end"
        start += bug == "late_start"
        rest = "" if bug == "blank_background" else "background"
        return [
            name if start <= t < end else rest
            for t in range(10 if bug == "ten_always" else seconds)
        ]

    return answer


@right("second_labels")
def labels_by_slices(event, seconds=10):
    labels = ["background"] * seconds
    for t in range(event[1], min(event[2], seconds)) if event else ():
        labels[t] = event[0]
    return labels


@family(
    "ave_accuracy",
    over_all="one number for each clip",
    background_left_out="background counts",
    all_or_nothing="the share of seconds",
    any_shape="tables of another shape",
)
def accuracy_by_loops(bug):
    def answer(pred, target):
        if bug != "any_shape" and [len(p) for p in pred] != [len(t) for t in target]:
            raise ValueError("tables of two shapes")
        rows = []
        for p, t in zip(pred, target):
            pairs = [
                (a, b) for a, b in zip(p, t) if bug != "background_left_out" or b != "background"
            ]
            rows.append(sum(a == b for a, b in pairs) / max(len(pairs), 1))
        if bug == "all_or_nothing":
            rows = [float(r == 1) for r in rows]
        return np.full(len(rows), np.mean(rows)) if bug == "over_all" else np.array(rows)

    return answer


@right("ave_accuracy")
def accuracy_as_a_list(pred, target):
    p, t = np.array(pred), np.array(target)
    if p.shape != t.shape:
        raise ValueError("shapes")
    return list((p == t).sum(1) / p.shape[1])


# 03: sound --------------------------------------------------------------------------------------


@family(
    "fbank",
    no_emphasis="high tones are raised",
    log10="twice as loud",
    magnitude="twice as loud",
    mean_kept="a constant added",
    mean_of_clip="a constant added",
    plain_hann="the window is Hann",
    hamming="the window is Hann",
    periodic="the window is Hann",
    not_scaled="samples count as 16-bit",
    one_std="twice as loud",
    padded="there are 1 +",
    floor_too_low="silence is the floor",
    first_row_only="noise, several frames",
)
def fbank_by_frames(bug):
    def answer(waveform):
        if bug == "padded":
            waveform = F.pad(waveform, (200, 200))
        wave = waveform * (1 if bug == "not_scaled" else 32768)
        if bug == "mean_of_clip":
            wave = wave - wave.mean(1, keepdim=True)
        x = torch.stack([wave[:, s : s + 400] for s in range(0, wave.shape[1] - 399, 160)], 1)
        if bug not in ("mean_kept", "mean_of_clip"):
            x = x - x.mean(2, keepdim=True)
        if bug == "first_row_only":
            x = x[:1].expand_as(x)
        before = F.pad(x, (1, 0))[..., :-1].clone()
        before[..., 0] = x[..., 0]
        x = x if bug == "no_emphasis" else x - 0.97 * before
        window = {
            "hamming": torch.hamming_window(400, False),
            "plain_hann": torch.hann_window(400, False),
            "periodic": torch.hann_window(400) ** 0.85,
        }.get(bug, torch.hann_window(400, False) ** 0.85)
        power = torch.fft.rfft(x * window, n=512)[..., :256].abs()
        power = (power if bug == "magnitude" else power**2) @ mel_banks(waveform.device)
        power = power.clamp_min(1e-10 if bug == "floor_too_low" else 2**-23)
        logs = power.log10() if bug == "log10" else power.log()
        return (logs - 15.41663) / ((1 if bug == "one_std" else 2) * 6.55582)

    return answer


@right("fbank")
def fbank_in_float64(waveform):
    frames = (waveform.double() * 2**15).unfold(1, 400, 160)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = torch.cat([frames[..., :1] * 0.03, frames[..., 1:] - 0.97 * frames[..., :-1]], -1)
    turn = torch.arange(400, dtype=torch.float64) * 2 * math.pi / 399
    spectrum = torch.fft.fft(frames * (0.5 - 0.5 * turn.cos()) ** 0.85, 512)[..., :256]
    mel = (spectrum.real**2 + spectrum.imag**2) @ mel_banks(waveform.device).double()
    return ((torch.maximum(mel, torch.tensor(2.0**-23)).log() - 15.41663) / 13.11164).float()


@right("fbank")
def fbank_without_a_first_difference(waveform):
    """The first sample of a frame may be anything: the window is zero there."""
    x = (waveform * 32768).unfold(1, 400, 160)
    x = x - x.mean(-1, keepdim=True)
    x = torch.cat([torch.zeros_like(x[..., :1]), x[..., 1:] - 0.97 * x[..., :-1]], -1)
    power = (
        torch.fft.rfft(x * torch.hann_window(400, periodic=False).pow(0.85), 512)
        .abs()[..., :-1]
        .square()
    )
    return ((power @ mel_banks(x.device)).clamp(min=2**-23).log() - 15.41663) / 13.11164


@family(
    "fold_mask",
    any_is_enough="a chunk that is padding in part",
    interleaved="chunks are neighbours",
    cut_at_the_start="what is left over",
    last_kept="what is left over",
    first_row="rows are folded separately",
)
def fold_by_unflatten(bug):
    def answer(mask, count):
        size = mask.shape[1] // count
        if bug == "last_kept":
            size = -(-mask.shape[1] // count)
            mask = F.pad(mask, (0, size * count - mask.shape[1]), value=True)
        kept = (
            mask[:, mask.shape[1] - size * count :]
            if bug == "cut_at_the_start"
            else mask[:, : size * count]
        )
        if bug == "interleaved":
            return kept.unflatten(1, (size, count)).all(1)
        chunks = kept.unflatten(1, (count, size))
        if bug == "first_row":
            chunks = chunks[:1].expand_as(chunks)
        return chunks.any(2) if bug == "any_is_enough" else chunks.all(2)

    return answer


@right("fold_mask")
def fold_by_loops(mask, count):
    size = mask.shape[1] // count
    return torch.tensor(
        [[all(row[c * size : c * size + size]) for c in range(count)] for row in mask.tolist()]
    )


@family(
    "draw_hidden",
    coins="each row hides exactly",
    same_for_all="rows hide different places",
    first_places="rows hide different places",
    quarter="each row hides exactly",
    own_generator="the generator decides",
    numbers="it is bool",
    prefers_the_start="every place is hidden equally",
)
def hidden_by_topk(bug):
    def answer(rows, patches, rng):
        noise = torch.rand(
            1 if bug == "same_for_all" else rows,
            patches,
            generator=None if bug == "own_generator" else rng,
        ).expand(rows, patches)
        if bug == "coins":
            return noise < 0.75
        if bug == "first_places":
            noise = -torch.arange(patches).float().expand(rows, patches)
        if bug == "prefers_the_start":
            noise = noise - 0.05 * torch.arange(patches)
        count = round((0.25 if bug == "quarter" else 0.75) * patches)
        hidden = torch.zeros(rows, patches, dtype=torch.bool).scatter(
            1, noise.topk(count, 1).indices, True
        )
        return hidden.float() if bug == "numbers" else hidden

    return answer


@right("draw_hidden")
def hidden_by_shuffling(rows, patches, rng):
    order = torch.stack([torch.randperm(patches, generator=rng) for _ in range(rows)])
    return order < round(0.75 * patches)


# 04: attention ----------------------------------------------------------------------------------


@family(
    "attend",
    no_scale="scores are divided",
    scale_by_d="scores are divided",
    scale_by_all_heads="scores are divided",
    wrong_axis="the weights of each query",
    one_ahead="causal: a query",
    itself_hidden="causal: a query",
    mask_after_softmax="masked keys have no weight",
    mask_inverted="masked keys have no weight",
    mask_ignored="masked keys have no weight",
    float_mask_ignored="a float mask",
    float_mask_times="a float mask",
    causal_ignored="causal: a query",
    detached="the gradient reaches",
    first_batch_row="heads and rows",
)
def attend_written_out(bug):
    def answer(q, k, v, mask=None, causal=False):
        width = q.shape[-1] * (q.shape[1] if bug == "scale_by_all_heads" else 1)
        scale = {"no_scale": 1.0, "scale_by_d": 1 / width}.get(bug, width**-0.5)
        scores = (q[:1] if bug == "first_batch_row" else q) @ k.transpose(-1, -2) * scale
        look = None
        if mask is not None and mask.dtype == torch.bool and bug != "mask_ignored":
            look = ~mask if bug == "mask_inverted" else mask
        elif mask is not None and mask.dtype != torch.bool and bug != "float_mask_ignored":
            scores = scores * mask if bug == "float_mask_times" else scores + mask
        if causal and bug != "causal_ignored":
            shift = {"one_ahead": 1, "itself_hidden": -1}.get(bug, 0)
            look = torch.ones(scores.shape[-2:]).tril(shift).bool()
        if look is not None and bug != "mask_after_softmax":
            scores = scores.masked_fill(~look, float("-inf"))
        weights = scores.softmax(-2 if bug == "wrong_axis" else -1)
        if look is not None and bug == "mask_after_softmax":
            weights = weights * look
        return (weights.detach() if bug == "detached" else weights) @ v

    return answer


@right("attend")
def attend_by_hand(q, k, v, mask=None, causal=False):
    scores = torch.einsum("bnld,bnkd->bnlk", q, k) / math.sqrt(q.shape[-1])
    if causal:
        places = torch.arange(q.shape[2])
        mask = places[:, None] >= places[None]
    if mask is not None:
        scores = scores + (
            mask if mask.is_floating_point() else torch.zeros(mask.shape).masked_fill(~mask, -1e30)
        )
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bnlk,bnkd->bnld", weights / weights.sum(-1, keepdim=True), v)


@family(
    "causal_mask",
    sees_ahead="no query sees a key after",
    first_keys_ask="the queries are the LAST",
    padding_visible="padding is invisible",
    nothing_for_padding="every query sees itself",
    first_row_for_all="rows are padded differently",
    itself_hidden="every query sees itself",
    padded_queries_only="padding is invisible",
)
def mask_by_columns(bug):
    def answer(attention_mask, queries):
        keys = attention_mask.shape[1]
        key = torch.arange(keys)
        query = torch.arange(queries)[:, None] + (0 if bug == "first_keys_ask" else keys - queries)
        before = key <= query + 1 if bug == "sees_ahead" else key < query
        real = (
            attention_mask[:1].expand_as(attention_mask)
            if bug == "first_row_for_all"
            else attention_mask
        )
        seen = before[None, None] & (True if bug == "padding_visible" else real[:, None, None])
        if bug == "padded_queries_only":
            seen = before[None, None] & real[:, None, keys - queries :, None]
        if bug == "nothing_for_padding":
            return seen | ((key == query)[None, None] & real[:, None, None])
        if bug == "padding_visible":
            seen = seen.expand(len(real), 1, queries, keys)
        return seen if bug == "itself_hidden" else seen | (key == query)

    return answer


@right("causal_mask")
def mask_by_tril(attention_mask, queries):
    square = torch.ones(attention_mask.shape[1], attention_mask.shape[1]).tril().bool()
    seen = square & attention_mask[:, None]
    seen = seen | torch.eye(attention_mask.shape[1]).bool()
    return seen[:, None, -queries:]


@family(
    "grouped_attend",
    tiled="neighbouring query heads",
    first_head_only="neighbouring query heads",
    mean_of_heads="neighbouring query heads",
    no_scale="as many heads each way",
    detached="gradients of all heads",
    fails_on_groups="one kv head serves",
)
def grouped_by_repeating(bug):
    def answer(q, k, v):
        times = q.shape[1] // k.shape[1]
        if bug == "tiled":
            k, v = (t.repeat(1, times, 1, 1) for t in (k, v))
        elif bug == "first_head_only" and times > 1:
            k, v = (t[:, :1].expand(-1, q.shape[1], -1, -1) for t in (k, v))
        elif bug == "mean_of_heads" and times > 1:
            k, v = (t.mean(1, keepdim=True).expand(-1, q.shape[1], -1, -1) for t in (k, v))
        elif bug == "fails_on_groups":
            k, v = (t.reshape(q.shape) for t in (k, v))
        else:
            k, v = (t.repeat_interleave(times, 1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * (1 if bug == "no_scale" else q.shape[-1] ** -0.5)
        return scores.softmax(-1) @ (v.detach() if bug == "detached" else v)

    return answer


@right("grouped_attend")
def grouped_by_reshaping(q, k, v):
    b, n, length, d = q.shape
    groups = q.reshape(b, k.shape[1], -1, length, d)
    weights = (groups @ k[:, :, None].transpose(-1, -2) / math.sqrt(d)).softmax(-1)
    return (weights @ v[:, :, None]).reshape(b, n, length, d)


# 05: the language model -------------------------------------------------------------------------


@family(
    "rms_norm",
    eps_outside="eps stands under",
    no_eps="eps stands under",
    mean_removed="the mean square",
    sum_of_squares="the mean square",
    no_weight="each channel has",
    all_tokens="each token by itself",
    detached="gradients reach",
    standard_deviation="the mean square",
    divided_by_weight="each channel has",
)
def norm_by_steps(bug):
    def answer(x, weight, eps):
        if bug == "mean_removed":
            x = x - x.mean(-1, keepdim=True)
        if bug == "standard_deviation":
            return x / (x.std(-1, keepdim=True) + eps) * weight
        square = (
            (x * x).sum(-1, keepdim=True)
            if bug == "sum_of_squares"
            else (x * x).mean(-1, keepdim=True)
        )
        if bug == "all_tokens":
            square = (x * x).mean()
        root = (
            square.sqrt() + eps
            if bug == "eps_outside"
            else (square + (0 if bug == "no_eps" else eps)).sqrt()
        )
        y = x / (root.detach() if bug == "detached" else root)
        return y if bug == "no_weight" else y / weight if bug == "divided_by_weight" else y * weight

    return answer


@right("rms_norm")
def norm_by_torch(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


@family(
    "rotary_table_of",
    half_frequencies="pair i turns",
    degrees="the first pair",
    base_inverted="pair i turns",
    sine_first="position 0 is not turned",
    positions_ignored="the first pair",
    no_head_axis="two tables of shape",
    counted_up="each row has its own",
)
def table_by_powers(bug):
    def answer(positions, size, theta):
        i = torch.arange(size // 2)
        power = {"half_frequencies": -i / size, "base_inverted": 2 * i / size}.get(
            bug, -2 * i / size
        )
        places = positions.float()
        if bug == "positions_ignored":
            places = torch.arange(positions.shape[1]).expand(positions.shape).float()
        if bug == "counted_up":
            places = positions[:1].float().expand(positions.shape)
        angle = places[:, None, :, None] * theta**power
        if bug == "degrees":
            angle = angle * math.pi / 180
        if bug == "no_head_axis":
            angle = angle[:, 0]
        return (angle.sin(), angle.cos()) if bug == "sine_first" else (angle.cos(), angle.sin())

    return answer


@right("rotary_table_of")
def table_by_complex_numbers(positions, size, theta):
    frequency = torch.exp(-math.log(theta) * torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones(1), positions.unsqueeze(1).unsqueeze(-1) * frequency)
    return turn.real, turn.imag


@family(
    "apply_rotary",
    neighbours="dimension i belongs",
    sign="a pair turns",
    first_half_only="a pair turns",
    no_rotation="a pair turns",
    not_a_rotation="a pair turns",
    whole_axis="a pair turns",
    adds_position="a turn of zero",
)
def rotate_by_halves(bug):
    def answer(x, cos, sin):
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        if bug == "neighbours":
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        if bug == "sign":
            return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)
        if bug == "first_half_only":
            return torch.cat((a * cos - b * sin, b), -1)
        if bug == "no_rotation":
            return x
        if bug == "not_a_rotation":
            return torch.cat((a * cos - b * sin, b * cos - a * sin), -1)
        if bug == "whole_axis":
            return torch.cat((a * cos - a * sin, b * cos + b * sin), -1)
        if bug == "adds_position":
            return x + torch.cat((cos, sin), -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    return answer


@right("apply_rotary")
def rotate_half_as_published(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * torch.cat((cos, cos), -1) + turned * torch.cat((sin, sin), -1)


@right("apply_rotary")
def rotate_as_complex_numbers(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag), -1)


@family(
    "token_positions",
    padding_counted="padding takes no place",
    columns_after_cache="tokens after a cache",
    seen_of_first_row="each row goes on",
    all_alike="without padding they count up",
    reversed_order="without padding they count up",
    jumps_one="tokens after a cache",
)
def positions_by_cumsum(bug):
    def answer(attention_mask, seen):
        count = attention_mask.long().cumsum(1)
        if bug == "padding_counted":
            count = torch.ones_like(count).cumsum(1)
        if bug == "all_alike":
            count = torch.ones_like(count)
        if bug == "reversed_order":
            count = -count
        if bug == "columns_after_cache":
            return count - 1
        if bug == "jumps_one":
            return count - 1 + seen[:, None] + (seen[:, None] > 0)
        return count - 1 + (seen[:1] if bug == "seen_of_first_row" else seen[:, None])

    return answer


@right("token_positions")
def positions_from_one(attention_mask, seen):
    return attention_mask.long().cumsum(1) + seen[:, None]


@right("token_positions")
def positions_all_shifted_by_100(attention_mask, seen):
    padding = (~attention_mask).long().sum(1, keepdim=True)
    return 100 + torch.arange(attention_mask.shape[1]) - padding + seen[:, None]


@family(
    "cache_write",
    from_the_start="new tokens stand behind",
    whole_capacity="only what is written",
    new_alone="new tokens stand behind",
    concatenated="keys and values are kept",
    no_limit="more than fits",
    keys_twice="new tokens stand behind",
    one_too_late="new tokens stand behind",
)
def write_in_place(bug):
    def answer(keys, values, length, k, v):
        first = {"from_the_start": 0, "one_too_late": length + 1}.get(bug, length)
        end = first + k.shape[2]
        if bug == "concatenated":
            if end > keys.shape[2]:
                raise ValueError("no room")
            return torch.cat((keys[:, :, :length], k), 2), torch.cat((values[:, :, :length], v), 2)
        if end > keys.shape[2]:
            if bug == "no_limit":
                keys, values = (F.pad(t, (0, 0, 0, end - t.shape[2])) for t in (keys, values))
            else:
                raise ValueError("no room in the cache")
        keys[:, :, first:end] = k
        values[:, :, first:end] = k if bug == "keys_twice" else v
        if bug == "new_alone":
            return k, v
        return (keys, values) if bug == "whole_capacity" else (keys[:, :, :end], values[:, :, :end])

    return answer


@right("cache_write")
def write_token_by_token(keys, values, length, k, v):
    if length + k.shape[2] > keys.shape[2]:
        raise ValueError(f"capacity {keys.shape[2]}")
    for i in range(k.shape[2]):
        keys[:, :, length + i].copy_(k[:, :, i])
        values[:, :, length + i].copy_(v[:, :, i])
    return keys.narrow(2, 0, length + k.shape[2]).clone(), values.narrow(
        2, 0, length + k.shape[2]
    ).clone()


@family(
    "generate",
    first_column="the first new token",
    with_prompt="only the new ids",
    not_appended="each new token is read",
    padding_visible="padding changes nothing",
    smallest="the first new token",
    masked_as_padding="each new token is read",
    new_token_alone="each new token is read",
)
def generate_by_appending(bug):
    def answer(llm, ids, attention_mask, new_tokens):
        start = ids.shape[1]
        for _ in range(new_tokens):
            logits = llm(ids, None if bug == "padding_visible" else attention_mask)
            last = logits[:, 0] if bug == "first_column" and ids.shape[1] > 1 else logits[:, -1]
            new = (
                last.argmin(-1, keepdim=True)
                if bug == "smallest"
                else last.argmax(-1, keepdim=True)
            )
            ids = torch.cat((ids[:, 1:] if bug == "new_token_alone" else ids, new), 1)
            if bug == "not_appended":
                ids[:, :start] = ids[:, :start]
                logits = llm(ids[:, :start], attention_mask[:, :start])
                ids[:, -1] = logits[:, -1].argmax(-1)
            real = (
                torch.zeros_like(new).bool()
                if bug == "masked_as_padding"
                else torch.ones_like(new).bool()
            )
            attention_mask = torch.cat(
                (attention_mask[:, 1:] if bug == "new_token_alone" else attention_mask, real), 1
            )
        return ids if bug == "with_prompt" else ids[:, -new_tokens:]

    return answer


@right("generate")
def generate_row_by_row(llm, ids, attention_mask, new_tokens):
    rows = []
    for row, real in zip(ids, attention_mask):
        row = row[real][None]
        for _ in range(new_tokens):
            row = torch.cat((row, llm(row)[:, -1:].argmax(-1)), 1)
        rows.append(row[0, -new_tokens:])
    return torch.stack(rows)


# 06: the Q-Former -------------------------------------------------------------------------------


@family(
    "cells_of",
    swapped="cells are counted row by row",
    by_column="cells are counted row by row",
    no_repeat="queries beyond",
    rounded_up="maps that do not divide",
    as_numbers="one cell holds",
    last_cell_only="queries beyond",
    transposed="one cell holds",
)
def cells_by_places(bug):
    def answer(h, w, grid, queries):
        rows, columns = grid[::-1] if bug == "swapped" else grid
        size = (-(-h // rows), -(-w // columns))
        found = torch.zeros(queries, h * w, dtype=torch.bool)
        for q in range(queries):
            cell = (
                q
                if bug == "no_repeat"
                else min(q, rows * columns - 1)
                if bug == "last_cell_only"
                else q % (rows * columns)
            )
            for y in range(h):
                for x in range(w):
                    a, b = (
                        (y // size[0], x // size[1])
                        if bug == "rounded_up"
                        else (y * rows // h, x * columns // w)
                    )
                    found[q, y * w + x] = cell == (
                        b * rows + a if bug == "by_column" else a * columns + b
                    )
        return found.float() if bug == "as_numbers" else found.T if bug == "transposed" else found

    return answer


@right("cells_of")
def cells_by_broadcasting(h, w, grid, queries):
    place = torch.arange(h * w)
    cell = (place // w * grid[0] // h) * grid[1] + place % w * grid[1] // w
    return torch.stack([cell == q % (grid[0] * grid[1]) for q in range(queries)])


@family(
    "query_start",
    summed="one cell: the mean",
    no_code="the place code is in it",
    swapped="rows and columns",
    all_places="each query has",
    code_transposed="the place code is in it",
    detached="gradients reach",
    cells_reversed="each query has",
)
def start_by_products(bug):
    def answer(features, h, w, grid, queries):
        own = cells(h, w, grid[::-1] if bug == "swapped" else grid, queries).float()
        if bug == "all_places":
            own = torch.ones_like(own)
        if bug == "cells_reversed":
            own = own.flip(0)
        code = (
            place_code(w, h, features.shape[-1])
            if bug == "code_transposed"
            else place_code(h, w, features.shape[-1])
        )
        keys = features if bug == "no_code" else features + code
        if bug == "detached":
            keys = keys.detach()
        return (own if bug == "summed" else own / own.sum(1, keepdim=True)) @ keys

    return answer


@right("query_start")
def start_by_selecting(features, h, w, grid, queries):
    placed = features + place_code(h, w, features.shape[-1])[None]
    return torch.stack([placed[:, own].mean(1) for own in cells(h, w, grid, queries)], 1)


@family(
    "keys_values_bias",
    places_in_values="values do not carry",
    no_places="keys carry the place",
    outside_forbidden="outside its cell",
    one_pull="each head pulls",
    pull_outside="each head pulls",
    keys_and_values_swapped="keys carry the place",
    swapped="outside its cell",
)
def anchored_by_products(bug):
    def answer(features, h, w, grid, queries, pull):
        keys = features + place_code(h, w, features.shape[-1])
        own = cells(h, w, grid[::-1] if bug == "swapped" else grid, queries).float()
        if bug == "pull_outside":
            own = 1 - own
        bias = (pull.mean().expand(len(pull)) if bug == "one_pull" else pull)[:, None, None] * own
        if bug == "outside_forbidden":
            bias = bias.masked_fill(own[None] == 0, float("-inf"))
        if bug == "keys_and_values_swapped":
            return features, keys, bias
        return (
            features if bug == "no_places" else keys,
            keys if bug == "places_in_values" else features,
            bias,
        )

    return answer


@right("keys_values_bias")
def anchored_by_where(features, h, w, grid, queries, pull):
    own = cells(h, w, grid, queries)[None].expand(len(pull), -1, -1)
    bias = torch.where(own, pull[:, None, None], torch.zeros(()))
    return [place_code(h, w, features.shape[-1])[None] + features, features.clone(), bias]


# 07: the masked write ---------------------------------------------------------------------------


@family(
    "masked_write",
    first_rows_mask="each row has slots",
    by_column="tokens are taken row after row",
    blocked_tokens="gradients reach",
    blocked_embeds="gradients reach",
    added="one row: slots",
    from_the_end="one row: slots",
    each_row_from_the_start="each row has slots",
    in_place="the inputs are left",
)
def write_by_scatter(bug):
    def answer(embeds, slots, tokens):
        if bug == "first_rows_mask":
            slots = slots[:1].expand_as(slots)
        if bug == "by_column":
            result = embeds.clone().transpose(0, 1)
            result[slots.T] = tokens
            return result.transpose(0, 1)
        if bug == "from_the_end":
            tokens = tokens.flip(0)
        if bug == "each_row_from_the_start":
            result = embeds.clone()
            for b, own in enumerate(slots):
                result[b, own] = tokens[: int(own.sum())]
            return result
        if bug == "in_place":
            embeds[slots] = tokens
            return embeds
        if bug == "blocked_tokens":
            tokens = tokens.detach()
        if bug == "blocked_embeds":
            embeds = embeds.detach()
        result = embeds.masked_scatter(slots[..., None], tokens)
        return result + embeds * slots[..., None] if bug == "added" else result

    return answer


@right("masked_write")
def write_by_index(embeds, slots, tokens):
    result = embeds.clone()
    result[slots] = tokens
    return result


@right("masked_write")
def write_by_gather(embeds, slots, tokens):
    if not len(tokens):
        return embeds
    order = (slots.flatten().long().cumsum(0) - 1).clamp(min=0).reshape(slots.shape)
    return torch.where(slots[..., None], tokens[order], embeds)


def package_embed(embeds, slots, tokens, words=None):
    """crab.py's own write, with a table that maps ids to what the exercise gives: the words' part
    is taken off."""
    ids = torch.where(slots, 1, 0)
    calls = []

    def table(asked):
        calls.append(asked)
        return embeds if len(calls) == 1 else torch.zeros_like(embeds)

    crab = SimpleNamespace(llm=SimpleNamespace(embed=table), ids=SpecialIds(1, 2, (3, 8), 9))
    return Crab.embed(crab, ids, tokens, tokens[:0])


right("masked_write")(package_embed)


@family(
    "word_before",
    place_before="all slots of a run",
    first_word="each run has its own",
    crosses_rows="rows do not read",
    next_word="the first slot of a run",
    run_before="the first slot of a run",
    largest_id="rows do not read",
)
def words_by_cummax(bug):
    def answer(ids, slots):
        if bug == "place_before":
            return ids.roll(1, 1)
        if bug == "first_word":
            first = (~slots & slots.roll(-1, 1)).long().argmax(1, keepdim=True)
            return ids.gather(1, first).expand_as(ids)
        places = torch.arange(ids.shape[1]).expand_as(ids)
        if bug == "next_word":
            after = places.masked_fill(slots, 10**6).flip(1).cummin(1).values.flip(1)
            return ids.gather(1, after.clamp(max=ids.shape[1] - 1))
        if bug == "run_before":
            word = places.masked_fill(slots, 0).cummax(1).values
            return ids.gather(1, (word - 1).clamp(min=0))
        if bug == "crosses_rows":
            flat, on = ids.flatten(), slots.flatten().clone()
            on[:: ids.shape[1]] = len(ids) > 1  # a row's first place is taken for a slot
            if len(ids) == 1:
                on[0] = False
            word = torch.arange(len(flat)).masked_fill(on, 0).cummax(0).values
            return flat[word].reshape(ids.shape).roll(len(ids) - 1, 0)
        if bug == "largest_id":
            return (
                ids.flip(0).masked_fill(slots, 0).cummax(1).values
                if len(ids) > 1
                else ids.masked_fill(slots, 0).cummax(1).values
            )
        return ids.gather(1, places.masked_fill(slots, 0).cummax(1).values)

    return answer


@right("word_before")
def words_by_walking(ids, slots):
    result = ids.clone()
    for l in range(1, ids.shape[1]):
        result[:, l] = torch.where(slots[:, l], result[:, l - 1], ids[:, l])
    return result


# 08: LoRA ---------------------------------------------------------------------------------------


@family(
    "lora_forward",
    softmax_over_tokens="one head is plain LoRA",
    alpha_alone="one head is plain LoRA",
    mean_of_heads="each head counts",
    summed_heads="heads that are alike",
    sigmoid="one head is plain LoRA",
    detached_router="the router learns",
    detached_A="the router learns",
    no_base="without B",
    no_bias="without B",
    best_head_only="each head counts",
    B_not_transposed="one head is plain LoRA",
)
def lora_by_einsum(bug):
    def answer(x, weight, bias, A, W_r, B, alpha):
        z = x @ (A.detach() if bug == "detached_A" else A).T
        logits = x @ W_r.T
        g = logits.softmax(0 if bug == "softmax_over_tokens" else -1)
        if bug == "sigmoid":
            g = logits.sigmoid()
        if bug == "mean_of_heads":
            g = torch.full_like(g, 1 / g.shape[1])
        if bug == "summed_heads":
            g = torch.ones_like(g)
        if bug == "best_head_only":
            g = F.one_hot(g.argmax(1), g.shape[1]).float() + 0 * g
        if bug == "detached_router":
            g = g.detach()
        if bug == "B_not_transposed":
            B = B.reshape(len(B), B.shape[2], B.shape[1]).transpose(1, 2)
        branch = torch.einsum("ne,nr,ero->no", g, z, B)
        base = 0 * (x @ weight.T) if bug == "no_base" else x @ weight.T
        return (
            base
            + (0 if bug == "no_bias" else bias)
            + (alpha if bug == "alpha_alone" else alpha / len(A)) * branch
        )

    return answer


@right("lora_forward")
def lora_by_heads(x, weight, bias, A, W_r, B, alpha):
    g, rank = F.softmax(F.linear(x, W_r), -1), A.shape[0]
    heads = torch.stack([F.linear(F.linear(x, A), b.T) for b in B], 1)
    return F.linear(x, weight, bias) + (alpha / rank) * (g[..., None] * heads).sum(1)


@family(
    "lora_backward",
    no_router_in_x="x has three ways",
    no_A_in_x="x has three ways",
    no_base_in_x="x has three ways",
    softmax_diagonal="the router's gradient",
    router_not_scaled="the router's gradient",
    B_not_scaled="B's gradient",
    B_not_routed="B's gradient",
    A_of_first_head="A's gradient",
    A_unweighted="A's gradient",
    order="B's gradient",
)
def backward_by_hand(bug):
    def answer(gy, x, weight, A, W_r, B, scaling):
        z, g = x @ A.T, (x @ W_r.T).softmax(-1)
        gu = torch.einsum("no,ero->ner", gy, B) * scaling
        weights = torch.ones_like(g) if bug == "B_not_routed" else g
        gB = torch.einsum("ne,nr,no->ero", weights, z, gy) * (
            1 if bug == "B_not_scaled" else scaling
        )
        gz = (g[..., None] * gu).sum(1)
        if bug == "A_of_first_head":
            gz = g[:, :1] * gu[:, 0]
        if bug == "A_unweighted":
            gz = gu.sum(1)
        gg = (gu * z[:, None]).sum(-1) / (scaling if bug == "router_not_scaled" else 1)
        gl = g * gg if bug == "softmax_diagonal" else g * (gg - (g * gg).sum(-1, keepdim=True))
        gx = 0 if bug == "no_base_in_x" else gy @ weight
        gx = (
            gx
            + (0 if bug == "no_A_in_x" else gz @ A)
            + (0 if bug == "no_router_in_x" else gl @ W_r)
        )
        found = gx, gz.T @ x, gl.T @ x, gB
        return found[::-1] if bug == "order" else found

    return answer


@right("lora_backward")
def backward_head_by_head(gy, x, weight, A, W_r, B, scaling):
    z, g = F.linear(x, A), F.linear(x, W_r).softmax(1)
    gB, gz, gg = [], 0, []
    for i in range(len(B)):
        back = scaling * gy @ B[i].T
        gB.append(scaling * (g[:, i : i + 1] * z).T @ gy)
        gz = gz + g[:, i : i + 1] * back
        gg.append((back * z).sum(1))
    gg = torch.stack(gg, 1)
    jacobian = torch.diag_embed(g) - g[:, :, None] * g[:, None]
    gl = (jacobian @ gg[..., None])[..., 0]
    return [gy @ weight + gz @ A + gl @ W_r, gz.T @ x, gl.T @ x, torch.stack(gB)]


@family(
    "merged_weight",
    transposed="B_i A, not A B_i",
    not_scaled="the branch is scaled",
    alpha_alone="the branch is scaled",
    any_heads="two heads are refused",
    branch_alone="without B it is",
)
def merged_by_product(bug):
    def answer(weight, A, B, alpha):
        if len(B) > 1 and bug != "any_heads":
            raise ValueError("one head only")
        delta = B.mean(0).T @ A
        if bug == "transposed" and delta.shape[0] == delta.shape[1]:
            delta = delta.T
        scaling = {"not_scaled": 1.0, "alpha_alone": alpha}.get(bug, alpha / len(A))
        if bug == "not_scaled":
            scaling = min(alpha, len(A)) / len(A)
        return scaling * delta if bug == "branch_alone" else weight + scaling * delta

    return answer


@right("merged_weight")
def merged_by_probing(weight, A, B, alpha):
    if len(B) != 1:
        raise ValueError("heads")
    basis = torch.eye(weight.shape[1])
    return (basis @ weight.T + alpha / A.shape[0] * (basis @ A.T @ B[0])).T


# 09: the kernel ---------------------------------------------------------------------------------


@family(
    "blocked_forward",
    last_block_lost="the last, shorter block",
    in_place="the inputs are left",
    carried="a block is not changed",
    softmax_over_the_block="a block is not changed",
    router_of_first_row="heads count by",
    heads_summed="one block that holds",
    unscaled="one block that holds",
    running_mean="a block is not changed",
)
def forward_in_blocks(bug):
    def answer(x, weight, bias, A, W_r, B, scaling, block):
        y, carried = x.new_zeros(len(x), len(weight)), 0.0
        rows = x.detach().clone() if bug != "in_place" else x
        end = len(x) // block * block if bug == "last_block_lost" and len(x) > block else len(x)
        for start in range(0, end, block):
            part = rows[start : start + block]
            z, g = part @ A.T, (part @ W_r.T).softmax(-1)
            if bug == "softmax_over_the_block" and start:
                g = g.mean(0, keepdim=True) + carried * 0 + 0.1
            if bug == "router_of_first_row" and len(part) > 2 and len(x) > 4:
                g = g[:1].expand_as(g)
            if bug == "heads_summed":
                g = torch.ones_like(g)
            u = (g[:, :, None] * z[:, None]).flatten(1)
            out = (
                part @ weight.T
                + bias
                + (1 if bug == "unscaled" else scaling) * (u @ B.flatten(0, 1))
            )
            if bug == "carried":
                out, carried = out + carried, out.mean()
            if bug == "running_mean":
                carried = u.mean() + carried
                out = out + (carried if start else 0)
            if bug == "in_place":
                part.mul_(0)
            y[start : start + block] = out
        return y

    return answer


@right("blocked_forward")
def forward_by_split(x, weight, bias, A, W_r, B, scaling, block):
    parts = []
    for part in x.split(block):
        u = torch.einsum("ne,nr->ner", F.linear(part, W_r).softmax(1), F.linear(part, A)).reshape(
            len(part), -1
        )
        parts.append(
            F.linear(part, weight, bias).addmm(u, B.reshape(-1, B.shape[-1]), alpha=scaling)
        )
    return torch.cat(parts)


@family(
    "flop_ratio",
    no_backward="A and the router",
    frozen_weight_gradient="A and the router",
    no_router="A and the router",
    heads_not_counted="all heads of B",
    A_per_head="A and the router",
    sides_swapped="A and the router",
)
def ratio_by_counting(bug):
    def answer(width, out):
        if bug == "sides_swapped":
            width, out = out, width
        r, E = 8, 3
        inside = (r * E + E if bug == "A_per_head" else r if bug == "no_router" else r + E) * width
        back = r * (1 if bug == "heads_not_counted" else E) * out
        layer = (3 if bug == "frozen_weight_gradient" else 2) * width * out
        return 1 + (1 if bug == "no_backward" else 3) * (inside + back) / layer

    return answer


@right("flop_ratio")
def ratio_by_product(width, out):
    products = [(8, width), (3, width), (24, out)]
    return (2 * width * out + 3 * sum(a * b for a, b in products)) / (2 * width * out)


# 10: mask tokens --------------------------------------------------------------------------------


@family(
    "mask_states",
    at_the_token="the state BEFORE",
    last_repeated="the state BEFORE",
    prompt_counted="mask tokens of the prompt",
    first_group_only="several groups and rows",
    flat="groups of last - first",
    rows_reversed="several groups and rows",
    detached="gradients reach",
    two_before="the state BEFORE",
)
def states_by_shift(bug):
    def answer(hidden, ids, loss_mask, first, last):
        at = (ids >= first) & (ids <= last)
        if bug != "prompt_counted":
            at = at & loss_mask
        count = last - first + 1
        rows, places = at.nonzero(as_tuple=True)
        shift = {"at_the_token": 0, "two_before": 2}.get(bug, 1)
        picked = hidden[rows, places - shift].reshape(-1, count, hidden.shape[-1])
        if bug == "last_repeated":
            picked = picked[:, -1:].expand_as(picked)
        if bug == "first_group_only":
            picked = picked[:1]
        if bug == "rows_reversed":
            picked = picked.flip(0)
        if bug == "flat":
            picked = picked.flatten(0, 1)
        return picked.detach() if bug == "detached" else picked

    return answer


@right("mask_states")
def states_by_searching(hidden, ids, loss_mask, first, last):
    groups = []
    for b in range(len(ids)):
        for l in range(1, ids.shape[1]):
            if ids[b, l] == first and loss_mask[b, l]:
                groups.append(hidden[b, l - 1 : l + last - first])
    return torch.stack(groups)


@family(
    "dice_loss",
    over_the_batch="one loss for each mask",
    no_sigmoid="logits become",
    no_smooth="the 1 stands above",
    smooth_below_only="a perfect mask",
    squared="p and t are summed",
    threshold="logits become probabilities",
    detached="gradients reach",
    not_doubled="a perfect mask",
    smooth_tiny="the 1 stands above",
)
def dice_by_sums(bug):
    def answer(logits, target):
        p = (
            logits
            if bug == "no_sigmoid"
            else (logits > 0).float()
            if bug == "threshold"
            else logits.sigmoid()
        )
        if bug == "detached":
            p = p.detach()
        axes = (0, 1, 2) if bug == "over_the_batch" else (1, 2)
        s = {"no_smooth": 0.0}.get(bug, 1.0)
        if bug == "smooth_tiny":
            s = torch.where(target.sum(axes) > 0, 1.0, 1e-6)
        size = p * p if bug == "squared" else p
        over = (1 if bug == "not_doubled" else 2) * (p * target).sum(axes) + (
            0 if bug == "smooth_below_only" else s
        )
        loss = 1 - over / (size.sum(axes) + target.sum(axes) + s)
        return loss.expand(len(logits)) if bug == "over_the_batch" else loss

    return answer


@right("dice_loss")
def dice_by_flattening(logits, target):
    p, t = 1 / (1 + torch.exp(-logits.reshape(len(logits), -1))), target.reshape(len(target), -1)
    total = p.sum(-1) + t.sum(-1) + 1
    return (total - 2 * torch.einsum("gp,gp->g", p, t) - 1) / total


@family(
    "bce_loss",
    over_the_batch="one loss for each mask",
    summed="the mean over the pixels",
    by_logarithms="sure and wrong is finite",
    clamped="sure and wrong is finite",
    on_logits="minus the logarithm",
    capped="gradients of sure",
)
def bce_by_formula(bug):
    def answer(logits, target):
        if bug == "on_logits":
            each = (logits - target) ** 2
        elif bug == "by_logarithms":
            p = logits.sigmoid()
            each = -(target * p.log() + (1 - target) * (1 - p).log())
        elif bug == "clamped":
            p = logits.sigmoid().clamp(1e-6, 1 - 1e-6)
            each = -(target * p.log() + (1 - target) * (1 - p).log())
        else:
            each = F.softplus(logits) - target * logits
        if bug == "capped":
            sure = each.detach() > 100
            each = torch.where(sure, each.detach(), each)
        if bug == "over_the_batch":
            return each.mean().expand(len(logits))
        return each.sum((1, 2)) if bug == "summed" else each.mean((1, 2))

    return answer


@right("bce_loss")
def bce_by_torch(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-1, -2))


@family(
    "mask_iou",
    at_half="foreground is a logit",
    over_the_batch="one number for each mask",
    empty_is_zero="nothing predicted",
    empty_is_nan="nothing predicted",
    over_target="over the union",
    over_sum="over the union",
    empty_target_is_one="nothing predicted",
)
def iou_by_sums(bug):
    def answer(pred, target):
        p, t = (pred > (0.5 if bug == "at_half" else 0)).numpy(), (target > 0).numpy()
        axes = None if bug == "over_the_batch" else (1, 2)
        both, either = (p & t).sum(axes), (p | t).sum(axes)
        if bug == "over_target":
            either = t.sum(axes)
        if bug == "over_sum":
            either = p.sum(axes) + t.sum(axes)
        iou = both / np.maximum(either, 1)
        if bug == "empty_is_nan":
            return np.where(either > 0, iou, np.nan)
        if bug == "empty_target_is_one":
            return np.where(t.sum((1, 2)) > 0, iou, 1.0)
        iou = iou if bug == "empty_is_zero" else np.where(either > 0, iou, 1.0)
        return np.full(len(p), iou) if bug == "over_the_batch" else iou

    return answer


@right("mask_iou")
def iou_by_counting(pred, target):
    result = []
    for p, t in zip(pred.tolist(), target.tolist()):
        pixels = [(a > 0, b > 0) for row in zip(p, t) for a, b in zip(*row)]
        union = sum(a or b for a, b in pixels)
        result.append(sum(a and b for a, b in pixels) / union if union else 1.0)
    return np.array(result)


# 11: training -----------------------------------------------------------------------------------


@family(
    "answer_loss",
    unshifted="logits at l are held",
    prompt_counted="the prompt does not count",
    padding_counted="padding does not count",
    mean_of_row_means="a long answer counts",
    summed="the mean over the answer",
    mask_of_the_state="logits at l are held",
    detached="gradients reach",
)
def loss_by_shift(bug):
    def answer(logits, ids, loss_mask):
        wanted = loss_mask[:, 1:]
        if bug == "prompt_counted":
            wanted = wanted.flip(1).cummax(1).values.flip(1)
        if bug == "padding_counted":
            wanted = wanted.cummax(1).values
        if bug == "mask_of_the_state":
            wanted = loss_mask[:, :-1]
        guess, true = (
            (logits[:, 1:], ids[:, 1:]) if bug == "unshifted" else (logits[:, :-1], ids[:, 1:])
        )
        each = F.cross_entropy(guess.transpose(1, 2), true, reduction="none") * wanted
        if bug == "mean_of_row_means":
            return (each.sum(1) / wanted.sum(1)).mean()
        if bug == "summed":
            return each.sum()
        loss = each.sum() / wanted.sum()
        return loss.detach() if bug == "detached" else loss

    return answer


@right("answer_loss")
def loss_by_ignored_labels(logits, ids, loss_mask):
    labels = ids.masked_fill(~loss_mask, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)


@family(
    "schedule",
    from_zero="the first step is not lost",
    no_limit="it never exceeds",
    cosine="it falls over",
    to_a_tenth="it falls over",
    fall_too_early="it falls over",
    divides_by_zero="a stage of no warm-up",
    below_zero="a stage of no warm-up",
    smaller_of_both="warm-up and fall",
)
def schedule_by_product(bug):
    def answer(step, progress, warmup):
        rise = (step + (0 if bug == "from_zero" else 1)) / (
            warmup if bug == "divides_by_zero" else max(warmup, 1)
        )
        rise = rise if bug == "no_limit" else min(rise, 1.0)
        left = 1 - progress if bug == "below_zero" else max(1 - progress, 0.0)
        fall = min(left / (0.75 if bug == "fall_too_early" else 0.6), 1.0)
        if bug == "cosine" and progress > 0.4:
            fall = 0.5 + 0.5 * math.cos(math.pi * min((progress - 0.4) / 0.6, 1))
        if bug == "to_a_tenth":
            fall = max(fall, 0.1)
        return min(rise, fall) if bug == "smaller_of_both" else rise * fall

    return answer


@right("schedule")
def schedule_by_cases(step, progress, warmup):
    factor = 1.0 if step + 1 >= warmup else (step + 1) / warmup
    if progress >= 1:
        return 0.0
    return factor * (1 - progress) / 0.6 if progress > 0.4 else factor


# 12: comparing ----------------------------------------------------------------------------------


@family(
    "paired_interval",
    unpaired="rows that differ by the same",
    without_replacement="rows are drawn with",
    few_rows="95 %",
    ninety="95 %",
    of_one_side="95 %",
    reversed_sign="low comes first",
    own_seed="the seed decides",
    standard_deviation="95 %",
    of_rows="95 %",
    over_the_batch="rows are drawn with",
)
def interval_by_draws(bug):
    def answer(a, b, draws, seed):
        rng, n = np.random.default_rng(None if bug == "own_seed" else seed), len(a)
        found = []
        for _ in range(draws):
            rows = (
                rng.permutation(n)
                if bug == "without_replacement"
                else rng.integers(0, n, n // 4 if bug == "few_rows" else n)
            )
            others = rng.integers(0, n, n) if bug == "unpaired" else rows
            found.append(a[rows].mean() - b[others].mean())
        found = np.array(found)
        if bug == "over_the_batch":
            found = np.full(draws, a.mean() - b.mean())
        if bug == "of_rows":
            found = a - b if np.ptp(a - b) > 0 else found
        if bug == "standard_deviation":
            return found.mean() - found.std(), found.mean() + found.std()
        edges = {"ninety": (15, 85), "of_one_side": (5, 100)}.get(bug, (2.5, 97.5))
        low, high = np.percentile(found, edges)
        return (-high, -low) if bug == "reversed_sign" else (low, high)

    return answer


@right("paired_interval")
def interval_of_differences(a, b, draws, seed):
    difference = np.asarray(a) - np.asarray(b)
    rows = np.random.default_rng(seed).integers(0, len(difference), (draws, len(difference)))
    return np.quantile(difference[rows].mean(1), [0.025, 0.975])


@right("paired_interval")
def interval_by_counts(a, b, draws, seed):
    rng, n = np.random.default_rng(seed), len(a)
    counts = rng.multinomial(n, np.full(n, 1 / n), draws)
    means = np.sort(counts @ (a - b) / n)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@family(
    "partner",
    across_tasks="it is a row of the same task",
    same_clip="it is of another clip",
    the_next="it is a row of the same task",
    shares_a_name="it shares no name",
    itself_at_last="without another clip",
    none_at_last="without another clip",
    no_fallback="a clip that shares a name",
    first_row="it is of another clip",
    equal_names_only="it shares no name",
)
def partner_by_search(bug):
    def answer(k, rows):
        own, n = rows[k], len(rows)
        around = [(k + j) % n for j in range(1, n)]
        if bug == "the_next":
            return around[0]
        if bug == "first_row":
            return next(j for j in range(n) if rows[j]["task"] == own["task"])
        others = [
            j
            for j in around
            if (bug == "across_tasks" or rows[j]["task"] == own["task"])
            and (bug == "same_clip" or rows[j]["clip"] != own["clip"])
        ]
        if bug == "across_tasks":
            others = sorted(others, key=lambda j: rows[j]["task"] == own["task"])
        if not others and bug in ("itself_at_last", "none_at_last"):
            return k if bug == "itself_at_last" else None
        if not others:
            raise ValueError("no other clip")
        fits = (
            [j for j in others if rows[j]["names"] != own["names"]]
            if bug == "equal_names_only"
            else [j for j in others if not rows[j]["names"] & own["names"]]
        )
        if bug == "no_fallback":
            return fits[0]
        return others[0] if bug == "shares_a_name" or not fits else fits[0]

    return answer


@right("partner")
def partner_by_minimum(k, rows):
    others = [
        j
        for j, row in enumerate(rows)
        if row["task"] == rows[k]["task"] and row["clip"] != rows[k]["clip"]
    ]
    if not others:
        raise ValueError(f"row {k} is alone")
    return min(others, key=lambda j: len(rows[j]["names"] & rows[k]["names"]))


@right("partner")
def partner_of_the_package(k, rows):
    from crab_mini.evaluation.generate import partners

    same = [j for j, row in enumerate(rows) if row["task"] == rows[k]["task"]]
    kept = [
        SimpleNamespace(
            task=rows[j]["task"],
            clip=rows[j]["clip"],
            fields=dict(event=",".join(rows[j]["names"])),
            place=j,
        )
        for j in same
    ]
    return partners(kept)[same.index(k)].place


# 13: a tenth task -------------------------------------------------------------------------------


@family(
    "offscreen_truth",
    always_yes="both answers occur",
    always_no="both answers occur",
    whole_clip="seen in another second",
    reads_the_label="the row's own answer",
    first_second_only="seen in another second",
    last_second_only="every second is looked at",
    every_second="seen in another second",
    seen_not_heard="both answers occur",
    counts_only="names are compared",
)
def truth_by_seconds(bug):
    def answer(row):
        if bug == "reads_the_label" and "answer" in row:
            return row["answer"]
        if bug in ("always_yes", "always_no"):
            return bug.removeprefix("always_")
        seconds = list(zip(row["seen"], row["heard"]))
        if bug == "whole_clip":
            seconds = [(set().union(*row["seen"]), set().union(*row["heard"]))]
        if bug == "first_second_only":
            seconds = seconds[:1]
        if bug == "last_second_only":
            seconds = seconds[-1:]
        if bug == "seen_not_heard":
            seconds = [pair[::-1] for pair in seconds]
        off = [
            len(heard) > len(seen) if bug == "counts_only" else bool(heard - seen)
            for seen, heard in seconds
        ]
        return "yes" if (all(off) if bug == "every_second" else any(off)) else "no"

    return answer


@right("offscreen_truth")
def truth_by_loops(row):
    for t, names in enumerate(row["heard"]):
        for name in names:
            if name not in row["seen"][t]:
                return "yes"
    return "no"


@family(
    "offscreen_score",
    unparsed_dropped="an answer that cannot be read",
    fails_on_unreadable="an answer that cannot be read",
    word_anywhere="reasoning before the tag",
    percent="the share of right",
    unparsed_is_no="an answer that cannot be read",
    tag_optional="an answer that cannot be read",
    not_scored_at_all="no readable answer at all",
)
def score_by_search(bug):
    def answer(texts, truth):
        right = []
        for text, true in zip(texts, truth):
            found = re.search(r"<answer>\s*(yes|no)\s*</answer>", text)
            said = found[1] if found else "no" if bug == "unparsed_is_no" else None
            if bug == "fails_on_unreadable":
                said = found[1]
            if bug == "word_anywhere":
                found = re.search(r"yes|no", text)
                said = found[0] if found else None
            if bug == "tag_optional" and not found and text.strip() in ("yes", "no"):
                said = text.strip()
            if bug == "unparsed_dropped" and not found:
                continue
            right.append(said == true)
        if bug == "not_scored_at_all" and not any("<answer>" in text for text in texts):
            return float("nan")
        return (
            100 * sum(right) / len(right) if bug == "percent" else sum(right) / max(len(right), 1)
        )

    return answer


@right("offscreen_score")
def score_by_endings(texts, truth):
    said = [
        text.rpartition("<answer>")[2].removesuffix("</answer>").strip()
        if "<answer>" in text
        else ""
        for text in texts
    ]
    return float(np.mean([s == t for s, t in zip(said, truth)]))


@family(
    "usual_answer",
    share_of_yes="the more frequent answer",
    two_kinds="answers may be any words",
    half="the more frequent answer",
    zero_for_one_kind="one kind of answer",
    first_answer="the more frequent answer",
)
def usual_by_counter(bug):
    def answer(truth):
        if bug == "share_of_yes":
            return truth.count("yes") / len(truth)
        if bug == "half":
            return 0.5
        if bug == "two_kinds":
            return max(truth.count("yes"), truth.count("no")) / len(truth)
        if bug == "first_answer":
            return truth.count(sorted(truth)[0]) / len(truth)
        counts = Counter(truth)
        if bug == "zero_for_one_kind" and len(counts) == 1:
            return 0.0
        return counts.most_common(1)[0][1] / len(truth)

    return answer


@right("usual_answer")
def usual_by_unique(truth):
    return np.unique(truth, return_counts=True)[1].max() / len(truth)
