"""The whole model: the way from frames and sound to losses, what can be seen inside, an LLM that is another one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from crab_mini.batch import Sequence, collate
from crab_mini.config import LoRAConfig, preset
from crab_mini.model.attention import recording
from crab_mini.model.crab import Crab, SpecialIds
from crab_mini.model.kv_cache import KVCache
from crab_mini.model.llm import LLM, LanguageModel
from crab_mini.model.lora import InteractionLoRALinear
from crab_mini.model.recorder import recorded_attention, recorded_routes

IDS = SpecialIds(visual=4, audio=5, masks=(6, 11), eos=3)
BEGIN, SECOND, ASK, WORD, VOCAB = 2, 20, 30, 31, 40


def small_config():
    """The nano preset with a small vocabulary and grouped-query attention."""
    cfg = preset("nano")
    return replace(cfg, llm=replace(cfg.llm, vocab_size=VOCAB, kv_heads=2))


def small_crab(llm: nn.Module | None = None) -> Crab:
    torch.manual_seed(0)
    return Crab(small_config(), IDS, {} if llm is None else {"llm": llm})


def sequence(crab: Crab, answer: list[int], seed: int) -> Sequence:
    """Two seconds of random frames and sound, encoded; an answer, whose first mask group gets a target."""
    cfg, rng = crab.cfg, torch.Generator().manual_seed(seed)
    size = cfg.vision.image
    frames = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=rng)
    visual, audio = crab.encode(frames, torch.randn(2, 98, 128, generator=rng))
    prompt = [BEGIN]
    for second in range(2):
        prompt += [SECOND + second] + [IDS.visual] * cfg.visual_qformer.queries
        prompt += [IDS.audio] * cfg.audio_qformer.queries
    prompt.append(ASK)
    kept = cfg.vision.kept
    made = Sequence("ms3", f"row {seed}", prompt + answer, [False] * len(prompt) + [True] * len(answer),
                    visual[:, kept.index(cfg.vision.llm_layer)], audio)
    if IDS.masks[0] in answer:
        made.mask_features = visual[0, [kept.index(layer) for layer in cfg.vision.mask_layers]]
        made.masks = torch.zeros(1, size, size, dtype=torch.bool)
        made.masks[:, :size // 2] = True
    return made


def small_batch(crab: Crab):
    """Two rows of different length; only the first has a mask."""
    return collate([sequence(crab, [WORD, *range(6, 12), WORD, IDS.eos], 1), sequence(crab, [WORD + 1, IDS.eos], 2)],
                   pad=0)


def random_lora(crab: Crab) -> None:
    """A LoRA that changes something: B is zero at first."""
    for module in crab.modules():
        if isinstance(module, InteractionLoRALinear):
            nn.init.normal_(module.lora_B, std=0.3)


def test_encode_gives_the_kept_layers_and_the_patches_of_each_second():
    crab = small_crab()
    vision, audio = crab.cfg.vision, crab.cfg.audio
    frames = torch.randint(256, (3, 3, vision.image, vision.image), dtype=torch.uint8)
    seen, heard = crab.encode(frames, torch.randn(2, 98, 128))
    assert seen.shape == (3, len(vision.kept), vision.grid ** 2, vision.dim) and not seen.requires_grad
    assert heard.shape == (2, 6 * (128 // audio.patch), audio.dim)
    # In the order of `kept`, without the class token.
    pixels = (frames / 255 - crab.pixel_mean) / crab.pixel_std
    for place, layer in enumerate(vision.kept):
        torch.testing.assert_close(seen[:, place], crab.vision.hidden_states(pixels)[layer][:, 1:])


def test_forward_is_its_steps_and_is_entered_later_with_tokens():
    crab = small_crab()
    batch = small_batch(crab)
    output = crab(batch)
    assert set(output.losses) == {"text", "bce", "dice"} and output.mask_states.shape == (1, 6, crab.cfg.llm.dim)
    tokens = crab.interface_tokens(batch.visual, batch.audio)
    later = crab(batch, tokens)
    assert torch.equal(output.states, later.states) and torch.equal(output.states, crab.llm.encode(
        crab.embed(batch.ids, *tokens)))
    other = crab(batch, tuple(torch.zeros_like(part) for part in tokens))
    assert not torch.allclose(output.states, other.states)
    # The text loss by hand: 9 and 2 ids of the answers, each predicted one place before it.
    total = torch.tensor(0.0)
    for row, column in batch.loss_mask.nonzero().tolist():
        scores = crab.llm.head(output.states[row, column - 1]).log_softmax(-1)
        total = total - scores[batch.ids[row, column]]
    assert output.losses["text"][1] == 11
    torch.testing.assert_close(output.losses["text"][0], total, atol=1e-4, rtol=1e-5)
    at = (batch.ids[0] == IDS.masks[0]).nonzero().item()
    assert torch.equal(output.mask_states[0], output.states[0, at - 1:at + 5])


def test_forward_stops_where_the_batch_has_nothing_more():
    crab = small_crab()
    batch = small_batch(crab)
    without = crab(replace(batch, mask_features=None))
    assert set(without.losses) == {"text"} and without.mask_states.shape == (1, 6, crab.cfg.llm.dim)
    assert crab(replace(batch, masks=None)).mask_states is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_attention_is_what_the_layer_computed(dtype):
    crab = small_crab().eval()
    batch, block = small_batch(crab), crab.llm.blocks[1].attention
    kept = {}
    hook = block.v_proj.register_forward_hook(lambda module, inputs, output: kept.update(v=output))
    end = block.o_proj.register_forward_pre_hook(lambda module, inputs: kept.update(y=inputs[0]))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        weights = crab.attention(batch, 1)
    hook.remove(), end.remove()
    heads, length = crab.cfg.llm.heads, batch.ids.shape[1]
    assert weights.shape == (2, heads, length, length) and weights.dtype == dtype
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(2, heads, length), atol=2e-2, rtol=0)
    assert weights.triu(1).abs().max() == 0
    v = kept["v"].unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(heads // 2, 1)
    y = (weights @ v).transpose(1, 2).flatten(2)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y, kept["y"], atol=tolerance, rtol=tolerance)


def test_encoders_and_q_formers_are_recorded_call_by_call():
    crab = small_crab().eval()
    frames = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    parts = {"vit": crab.vision, "beats": crab.audio, "qformer": crab.visual_qformer,
             "last": crab.vision.layers[-1]}
    with recorded_attention(parts) as calls:
        visual, audio = crab.encode(frames, torch.randn(2, 98, 128))
        crab.interface_tokens(visual[:, -1], audio)
    places, queries = crab.cfg.vision.grid ** 2, crab.cfg.visual_qformer.queries
    assert [w.shape[-2:] for w in calls["vit"]] == [(1 + places, 1 + places)] * crab.cfg.vision.layers
    assert len(calls["beats"]) == crab.cfg.audio.layers
    assert [w.shape[-2:] for w in calls["qformer"]] == [(queries, queries), (queries, places)]
    assert len(calls["last"]) == 1 and torch.equal(calls["last"][0], calls["vit"][-1])
    for weights in sum(calls.values(), []):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_router_weights_are_those_of_every_layer():
    crab = small_crab().with_lora("torch").eval()
    random_lora(crab)
    batch = small_batch(crab)
    inputs = {}
    layers = {name: module for name, module in crab.llm.named_modules()
              if isinstance(module, InteractionLoRALinear)}
    hooks = [layer.register_forward_pre_hook(lambda module, given: inputs.update({module: given[0]}))
             for layer in layers.values()]
    routes = crab.route(batch)
    for hook in hooks:
        hook.remove()
    assert routes.keys() == layers.keys() and "blocks.0.attention.q_proj" in routes
    assert len(routes) == 7 * crab.cfg.llm.layers
    for name, layer in layers.items():
        assert routes[name].shape == (*batch.ids.shape, crab.cfg.lora.heads)
        assert torch.equal(routes[name], layer.route(inputs[layer]))
        torch.testing.assert_close(routes[name].sum(-1), torch.ones(batch.ids.shape))


def test_nothing_is_recorded_or_changed_outside_and_an_error_leaves_nothing_behind():
    crab = small_crab().with_lora("torch").eval()
    random_lora(crab)
    batch = small_batch(crab)
    before = crab(batch).states
    with recorded_attention({"llm": crab.llm}) as calls, recorded_routes(crab.llm) as routes:
        assert torch.equal(crab(batch).states, before)
        with pytest.raises(ValueError, match="allocated for 1 tokens"):            # inside an attention
            crab.llm.encode(torch.zeros(1, 3, crab.cfg.llm.dim), cache=KVCache(2, 1))
    counts = len(calls["llm"]), len(routes["blocks.0.mlp.up_proj"])
    crab(batch)
    assert counts == (len(calls["llm"]), len(routes["blocks.0.mlp.up_proj"])) and recording == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in crab.modules())
    with pytest.raises(IndexError):
        crab.attention(batch, 9)
    assert small_crab().route(batch) == {}
    with pytest.raises(ValueError, match="block: Linear holds no attention"):
        small_crab(TinyGRU(VOCAB, 8)).attention(batch, 0)


def test_the_kernel_is_an_argument(monkeypatch):
    monkeypatch.setenv("CRAB_KERNEL", "neither")
    batch = small_batch(small_crab())
    assert small_crab().with_lora("torch")(batch).states.isfinite().all()
    for asked in ("", "other"):                         # the variable, and a name of one's own
        with pytest.raises(ValueError, match="expected one of auto, torch, cpp, cuda"):
            small_crab().with_lora(asked)(batch)


class TinyGRU(nn.Module):
    """Another language model, with `LanguageModel`'s members and nothing else that Crab could use."""

    def __init__(self, vocab: int, dim: int):
        super().__init__()
        self.embed, self.gru = nn.Embedding(vocab, dim), nn.GRU(dim, dim, batch_first=True)
        self.blocks = nn.ModuleList([nn.Linear(dim, dim)])
        self.head = nn.Linear(dim, vocab)

    def encode(self, embeds, mask=None, cache=None):
        return self.blocks[0](self.gru(embeds)[0])

    def generate_states(self, embeds, attention_mask, max_new_tokens, eos):
        ids, states = [], []
        for _ in range(max_new_tokens):
            states.append(self.encode(embeds)[:, -1])
            ids.append(self.head(states[-1]).argmax(-1))
            embeds = torch.cat([embeds, self.embed(ids[-1])[:, None]], 1)
        return torch.stack(ids, 1), torch.stack(states, 1)

    def added(self):
        return []

    def resize_token_embeddings(self, vocab):
        return self


def train(crab: Crab, batch, steps: int) -> list[dict[str, float]]:
    """The mean losses of each step."""
    optimizer = torch.optim.AdamW([p for p in crab.parameters() if p.requires_grad], 3e-3)
    curve = []
    for _ in range(steps):
        losses = {name: total / count for name, (total, count) in crab(batch).losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        curve.append({name: loss.item() for name, loss in losses.items()})
    return curve


def test_another_language_model_trains_and_answers():
    assert isinstance(LLM(small_config().llm), LanguageModel) and not isinstance(nn.Linear(1, 1), LanguageModel)
    gru = TinyGRU(VOCAB, small_config().llm.dim)
    assert isinstance(gru, LanguageModel)
    crab = small_crab(gru)
    batch = small_batch(crab)
    crab.freeze_except(crab.llm, crab.visual_qformer, crab.audio_qformer, crab.mask_prompt, crab.segmentation)
    curve = train(crab, batch, 60)
    assert curve[-1]["text"] < 0.2 * curve[0]["text"]
    assert curve[-1]["bce"] < 0.5 * curve[0]["bce"] and curve[-1]["dice"] < 0.5 * curve[0]["dice"]
    # What was learned is what it answers: the first row's words and its mask.
    prompt = sequence(crab, [], 1)
    answer = [WORD, *range(6, 12), WORD]
    answers = crab.eval().generate(collate([filled(prompt)], 0, left=True), [batch.mask_features[0]], 12)
    assert answers.ids == [answer] and (answers.masks[0] > 0).eq(batch.masks > 0).float().mean() > 0.9


def filled(prompt: Sequence) -> Sequence:
    """A prompt that fills its batch, so that the GRU, which knows no padding, sees none."""
    missing = -len(prompt.ids) % 16
    return replace(prompt, ids=[0] * missing + prompt.ids, loss_mask=[False] * missing + prompt.loss_mask)


def test_another_language_model_takes_lora():
    crab = small_crab(TinyGRU(VOCAB, small_config().llm.dim))
    batch = small_batch(crab)
    crab.freeze_except(crab.visual_qformer, crab.audio_qformer)
    layer = crab.with_lora("torch").llm.blocks[0]
    assert isinstance(layer, InteractionLoRALinear) and layer.cfg == LoRAConfig(rank=4)
    assert [p for p in crab.llm.parameters() if p.requires_grad] == [layer.lora_A, layer.lora_route, layer.lora_B]
    curve = train(crab, batch, 30)
    assert curve[-1]["text"] < 0.8 * curve[0]["text"]
