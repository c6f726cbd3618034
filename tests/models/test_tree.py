from __future__ import annotations

import copy
import functools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from truing.models import tree

V = 50
NO_SPECIALS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZE = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | NO_SPECIALS
WIDE = SIZE | {"intermediate_size": 64, "initializer_range": 0.2}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2, max_position_embeddings=128),
    "neox": GPTNeoXConfig(**WIDE, max_position_embeddings=128),
    "gpt2": GPT2Config(**SIZE, n_positions=128, initializer_range=0.2),
}
SLIDING = MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=4)
MAMBA = MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4, **NO_SPECIALS)


def make(config, attention: str = "sdpa"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at birth, and then they hide mistakes
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def family(seed: int, n: int = 14, longest: int = 24) -> list[list[int]]:
    """Random sequences that share beginnings, with a duplicate and proper prefixes among them."""
    r = random.Random(seed)
    trunks = [[r.randrange(V) for _ in range(longest)] for _ in range(2)]
    out = [
        r.choice(trunks)[: r.randrange(1, longest)] + [r.randrange(V) for _ in range(r.randrange(6))] for _ in range(n)
    ]
    return [*out, out[0], out[1][: max(1, len(out[1]) // 2)], trunks[0]]


def one_by_one(model, sequence: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([sequence])).logits[0, :-1]
    return logits.float().log_softmax(-1)[torch.arange(len(sequence) - 1), torch.tensor(sequence)[1:]]


def packed(model, sequences: list[list[int]], budget: int = 10**6) -> dict[int, torch.Tensor]:
    found = {}
    for p in tree.pack(sequences, budget):
        places, targets, counts = p.predictions([1] * len(sequences))
        logprobs = tree.gather_logprobs(tree.forward(model, p, positions_wanted=places), targets)
        found |= dict(zip(p.members, logprobs.split(counts), strict=True))
    return found


sequences_of_ids = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12)


@settings(max_examples=300, deadline=None)
@given(sequences_of_ids, st.integers(1, 30))
def test_packs_hold_every_sequence_once_with_parents_first_and_ancestors_in_sight(sequences, budget):
    packs = tree.pack(sequences, budget)
    assert sorted(m for p in packs for m in p.members) == list(range(len(sequences)))
    for p in packs:
        assert len(p) <= max(budget, max(len(sequences[m]) for m in p.members) + budget // 2)
        prefixes = {tuple(sequences[m][: i + 1]) for m in p.members for i in range(len(sequences[m]))}
        assert len(p) == len(prefixes)  # every common beginning once
        ancestors = torch.zeros(len(p), len(p), dtype=torch.bool)
        for m, path in zip(p.members, p.paths, strict=True):
            assert p.ids[path].tolist() == sequences[m]
            assert p.positions[path].tolist() == list(range(len(path)))
            assert path.tolist() == sorted(path.tolist())
            for i, place in enumerate(path):
                ancestors[place, path[: i + 1]] = True
        assert torch.equal(p.allowed, ancestors)
        mask = p.mask(torch.float32, past=3)
        assert mask.shape == (1, 1, len(p), 3 + len(p)) and (mask[..., :3] == 0).all()
        assert torch.equal(mask[0, 0, :, 3:] == 0, ancestors) and torch.isfinite(mask).all()


def test_a_context_longer_than_the_budget_is_read_once_for_its_options():
    """Planted: a cut wherever the budget is passed, which reads the context again for every option."""
    contexts = [[c] * 600 for c in range(3)]
    found = list(tree.packs([[*context, 7 + o, 9] for context in contexts for o in range(4)], 512))
    assert [len(p) for p in found] == [608] * 3


@settings(max_examples=100, deadline=None)
@given(sequences_of_ids, st.integers(1, 12))
def test_duplicates_and_prefixes_cost_nothing_under_any_budget(sequences, budget):
    more = [*sequences, *sequences, *[s[: (len(s) + 1) // 2] for s in sequences]]
    assert sum(map(len, tree.pack(more, budget))) == sum(map(len, tree.pack(sequences, budget)))


def test_packing_is_deterministic_and_refuses_an_empty_sequence():
    first, second = tree.pack(family(0), 40), tree.pack(family(0), 40)
    assert [p.ids.tolist() for p in first] == [p.ids.tolist() for p in second]
    assert tree.pack([]) == []
    with pytest.raises(ValueError, match="Sequence 1 has no tokens"):
        tree.pack([[1], []])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_scores_equal_one_text_at_a_time(kind, attention):
    model = make(CONFIGS[kind], attention)
    with torch.no_grad():
        for seed in range(6):
            sequences = family(seed)
            found = packed(model, sequences, budget=[10**6, 60, 25][seed % 3])
            for i, sequence in enumerate(sequences):
                torch.testing.assert_close(found[i], one_by_one(model, sequence), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_through_shared_beginnings_equal_one_text_at_a_time(kind):
    model, sequences = make(CONFIGS[kind]), family(3)
    weights = torch.randn(len(sequences), generator=torch.Generator().manual_seed(1))

    def gradients(logprobs) -> dict[str, torch.Tensor]:
        model.zero_grad()
        sum((logprobs[i].sum() * weights[i] for i in range(len(sequences))), torch.zeros(())).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    ours = gradients(packed(model, sequences))
    theirs = gradients([one_by_one(model, s) for s in sequences])
    scale = max(g.abs().max() for g in theirs.values())
    for name, grad in theirs.items():  # some biases have a gradient of exactly zero: compare those with the model's
        assert (ours[name] - grad).abs().max() / grad.abs().max().clamp_min(scale * 1e-3) < 1e-5, name


groups_of_samples = st.lists(  # prompts, each with a group of n samples, as RLOO and GRPO train on them
    st.tuples(
        st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
        st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=8), min_size=2, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("kind", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(groups=groups_of_samples, budget=st.integers(10, 80), seed=st.integers(0, 99))
def test_gradients_of_groups_of_samples_equal_those_of_padded_training(kind, groups, budget, seed):
    """In float64, where gradients that cancel are not left to rounding."""
    model = copy.deepcopy(cached(kind)).double()
    rows = [(prompt, sample) for prompt, samples in groups for sample in samples]
    sequences, starts = [p + s for p, s in rows], [len(p) for p, _ in rows]
    advantages = torch.randn(len(rows), generator=torch.Generator().manual_seed(seed))
    tokens = sum(len(s) for _, s in rows)

    def ours():
        for p in tree.pack(sequences, budget):
            places, targets, counts = p.predictions(starts)
            logprobs = tree.gather_logprobs(tree.forward(model, p, positions_wanted=places), targets)
            (logprobs * advantages[p.members].repeat_interleave(torch.tensor(counts))).sum().div(-tokens).backward()

    def padded():
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first=True)
        place = torch.arange(ids.shape[1])
        real = place < torch.tensor([len(s) for s in sequences])[:, None]
        replies = (real & (place >= torch.tensor(starts)[:, None]))[:, 1:]
        logits = model(ids, attention_mask=real.long()).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        (logprobs * replies * advantages[:, None]).sum().div(-tokens).backward()

    mine, theirs = ({}, {})
    for loss, found in ((ours, mine), (padded, theirs)):
        model.zero_grad()
        loss()
        found |= {name: p.grad.clone() for name, p in model.named_parameters()}
    scale = max(g.abs().max() for g in theirs.values())
    for name, grad in theirs.items():
        assert (mine[name] - grad).abs().max() / grad.abs().max().clamp_min(scale * 1e-3) < 1e-4, name


@functools.cache
def cached(kind: str):
    return make(CONFIGS[kind])


def test_the_head_runs_on_the_wanted_rows_only(monkeypatch):
    model, rows, linear = make(CONFIGS["llama"]), [], tree.F.linear
    (p,) = tree.pack(family(0))
    whole = tree.forward(model, p)

    def spy(x, weight, bias=None):
        if weight.shape[0] == V:
            rows.append(len(x))
        return linear(x, weight, bias)

    monkeypatch.setattr(tree.F, "linear", spy)
    wanted = torch.tensor([4, 1])
    torch.testing.assert_close(tree.forward(model, p, positions_wanted=wanted), whole[wanted])
    assert rows == [2]


def test_logits_and_logprobs_are_float32_whatever_the_model_computes_in():
    model = make(CONFIGS["llama"]).to(torch.bfloat16)
    (p,) = tree.pack([[1, 2, 3]])
    states = tree.hidden(model, p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tree.logits(model, states)
    assert states.dtype == torch.bfloat16 and out.dtype == torch.float32
    torch.testing.assert_close(out, states.float() @ model.lm_head.weight.float().T)
    assert tree.gather_logprobs(out.bfloat16(), torch.tensor([1, 2, 3])).dtype == torch.float32


@pytest.mark.parametrize("kind", ["llama", "neox"])
@pytest.mark.parametrize("raised", [0, 1])
def test_a_model_of_two_precisions_runs_under_autocast(kind, raised):
    model = make(CONFIGS[kind]).to(torch.bfloat16)
    (p,) = tree.pack(family(0))
    before = tree.hidden(model, p).float()
    tree.body(model).layers[raised].float()
    after = tree.hidden(model, p).float()
    assert (after - before).abs().mean() < 0.02 * before.abs().mean()


def test_what_can_read_trees():
    for config in [*CONFIGS.values(), Qwen2Config(**WIDE, num_key_value_heads=2)]:
        assert tree.supports_trees(make(config))
    local = GPTNeoConfig(
        vocab_size=V, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    )
    sliding = Gemma3TextConfig(**WIDE, num_key_value_heads=2, head_dim=8)
    bloom = BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4)
    for config in [SLIDING, MAMBA, local, sliding, bloom]:
        assert not tree.supports_trees(make(config, "eager" if config is bloom else None)), config.model_type
    flex = make(CONFIGS["llama"])
    flex.config._attn_implementation = "flex_attention"
    assert not tree.supports_trees(flex)


@pytest.mark.parametrize("config", [SLIDING, MAMBA], ids=["sliding", "recurrent"])
def test_models_without_trees_give_the_same_numbers_padded_and_say_so_once(config, capsys, monkeypatch):
    tree.explain_fallback.cache_clear()
    monkeypatch.setattr(tree, "PAD_ROWS_TOKENS", 70)  # several batches
    model = make(config, None)
    with torch.no_grad():
        for seed in range(3):
            sequences = family(seed)
            found = packed(model, sequences, budget=60)
            for i, sequence in enumerate(sequences):
                torch.testing.assert_close(found[i], one_by_one(model, sequence), atol=1e-4, rtol=0)
    assert capsys.readouterr().err.count("padded") == 1


def test_predictions_need_something_before_them():
    (p,) = tree.pack([[1, 2], [3]])
    with pytest.raises(ValueError, match="starts begin at 1"):
        p.predictions([0, 1])
    places, targets, counts = p.predictions([1, 1])
    assert [len(places), targets.tolist(), sorted(counts)] == [1, [2], [0, 1]]


def test_evaluating_restores_every_submodules_mode():
    model = make(CONFIGS["gpt2"]).train()
    model.transformer.h[0].eval()
    with tree.evaluating(model):
        assert not model.transformer.h[1].training
    assert model.training and model.transformer.h[1].training and not model.transformer.h[0].attn.training
