from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MambaConfig, MistralConfig

from truing.models import draw as drawing
from truing.models import split, tree
from truing.models.draw import Ends, Row, Settings, Trace, distribution, draw, fill_holes
from truing.models.engine import Engine

V, EOS, WINDOW = 60, 3, 160
NO_SPECIALS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZE = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | NO_SPECIALS
WIDE = SIZE | {"intermediate_size": 64, "initializer_range": 0.2, "max_position_embeddings": WINDOW}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2),
    "neox": GPTNeoXConfig(**WIDE),
    "gpt2": GPT2Config(**SIZE, n_positions=WINDOW, initializer_range=0.2),
}
FALLBACKS = {
    "sliding": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=4),
    "recurrent": MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4, **NO_SPECIALS),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)


def make(kind: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config((CONFIGS | FALLBACKS)[kind]).eval()


def prompts(seed: int = 0, n: int = 7, trunk: int = 0) -> list[list[int]]:
    """Prompts of many lengths after a common trunk; some begin alike, two are equal."""
    r = random.Random(seed)
    common, other = ([r.randrange(V) for _ in range(k)] for k in (trunk, 30))
    out = [common + other[: r.randrange(1, 30)] + [r.randrange(V) for _ in range(r.randrange(4))] for _ in range(n)]
    return [*out, out[2]]


def as_text(ids: list[int]) -> str:
    return "".join(f"{i} " for i in ids)


def one_by_one(model, sequence: list[int], start: int) -> np.ndarray:
    with torch.no_grad():
        logprobs = model(torch.tensor([sequence])).logits[0].float().log_softmax(-1)
    return logprobs[torch.arange(start - 1, len(sequence) - 1), torch.tensor(sequence)[start:]].numpy()


@kinds
def test_scores_equal_one_text_at_a_time(kind):
    model = make(kind)
    for seed, budget, trunk in [(0, 2048, 0), (1, 50, 0), (2, 60, 40), (3, 2048, 40)]:
        sequences, r = prompts(seed, 12, trunk), random.Random(seed)
        starts = [r.randrange(max(1, trunk), len(s) + 1) for s in sequences]
        found = Engine(model, budget=budget).score(sequences, starts)
        for ours, sequence, start in zip(found, sequences, starts, strict=True):
            assert ours.dtype == np.float32 and ours.shape == (len(sequence) - start,)
            np.testing.assert_allclose(ours, one_by_one(model, sequence, start), atol=1e-4, rtol=0)


@kinds
def test_the_likeliest_tokens_are_flagged(kind):
    model = make(kind)
    for seed, budget, trunk in [(0, 2048, 0), (1, 50, 0), (2, 60, 40)]:
        sequences, r = [s for s in prompts(seed, 12, trunk) if len(s) > 1], random.Random(seed)
        starts = [r.randrange(max(1, trunk), len(s) + 1) for s in sequences]
        for i in range(0, len(sequences), 2):  # half of them end in what greedy decoding would say
            with torch.no_grad():
                sequences[i] = [*sequences[i], int(model(torch.tensor([sequences[i]])).logits[0, -1].argmax())]
        plain = Engine(model, budget=budget).score(sequences, starts)
        found = Engine(model, budget=budget).score_greedy(sequences, starts)
        for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            with torch.no_grad():
                likeliest = model(torch.tensor([sequence])).logits[0].argmax(-1).tolist()
            np.testing.assert_allclose(found[i][0], plain[i], atol=1e-4, rtol=0)
            assert found[i][1].dtype == bool
            assert found[i][1].tolist() == [likeliest[t - 1] == sequence[t] for t in range(start, len(sequence))]
            assert i % 2 or found[i][1][-1]


def test_a_last_token_is_predicted_and_not_read():
    model = make("llama")
    engine, short = Engine(model), [3, 4, 5]
    found = engine.score_greedy([[*short, i] for i in range(V)], [3] * V)
    assert engine.tokens_run == 3 and sum(bool(flags[0]) for _, flags in found) == 1
    assert sum(np.exp(logprobs[0]) for logprobs, _ in found) == pytest.approx(1, abs=1e-4)
    over = [1] * (WINDOW + 1)
    assert len(engine.score_greedy([over], [1])[0][0]) == WINDOW
    with pytest.raises(ValueError, match="reads at most"):
        engine.score_greedy([[*over, 1]], [1])


def test_a_trunk_common_to_the_job_is_read_once():
    model, r = make("llama"), random.Random(0)
    trunk = [r.randrange(V) for _ in range(60)]
    jobs = [[*trunk, i, r.randrange(V), r.randrange(V)] for i in range(20)]
    engine = Engine(model, budget=30)
    engine.score(jobs, [60] * 20)
    assert engine.tokens_run == 59 + 3 * 1 + 20 * 3  # the trunk; its last token once in each of three packs; the rest
    engine = Engine(model)
    engine.score(jobs, [60] * 20)
    assert engine.tokens_run == 60 + 20 * 3


@kinds
def test_next_logprobs_equal_the_models_own(kind):
    model = make(kind)
    for budget, trunk in [(2048, 0), (50, 40)]:
        sequences = prompts(4, 9, trunk)
        whole = Engine(model, budget=budget).next_logprobs(sequences)
        some = Engine(model, budget=budget).next_logprobs(sequences, [[i, 5] for i in range(len(sequences))])
        for i, sequence in enumerate(sequences):
            with torch.no_grad():
                expected = model(torch.tensor([sequence])).logits[0, -1].log_softmax(-1).numpy()
            np.testing.assert_allclose(whole[i], expected, atol=1e-4)
            np.testing.assert_allclose(some[i], expected[[i, 5]], atol=1e-4)


def test_the_head_runs_on_the_rows_wanted_only(monkeypatch):
    rows, logits = [], tree.logits
    monkeypatch.setattr(tree, "logits", lambda model, h, weight=None: rows.append(len(h)) or logits(model, h, weight))
    engine, sequences = Engine(make("llama")), [[1] * 50 + [i, 7] for i in range(10)]
    engine.score(sequences, [51] * 10)
    assert sum(rows) == 10
    rows.clear()
    engine.score(sequences, [50] * 10)
    assert sum(rows) == 11  # ten first answers are predicted from one row
    rows.clear()
    engine.sample([[1, 2, 3]] * 4, max_tokens=2)
    assert sum(rows) == 8


@kinds
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_equal_rescored_ones_and_text_does_not_depend_on_the_batch(kind, temperature):
    model, many = make(kind), prompts(5)
    settings = {"max_tokens": 14, "temperature": temperature, "decode": as_text, "stops": ["17 "]}
    together = Engine(model, [EOS], max_batch=5, budget=64).sample(many, n=3, seeds=9, **settings)
    flat = [(p, s) for p, samples in zip(many, together, strict=True) for s in samples]
    rescored = Engine(model).score([[*p, *s.token_ids] for p, s in flat], [len(p) for p, _ in flat])
    for (_, sample), expected in zip(flat, rescored, strict=True):
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-3)
        assert sample.finish == ("stop" if sample.token_ids[-1] in (EOS, 17) else "length")
        assert len(sample.token_ids) <= 14 and (sample.finish == "stop" or len(sample.token_ids) == 14)
        kept = sample.token_ids[:-1] if sample.finish == "stop" else sample.token_ids
        assert sample.text == as_text(list(kept))
    assert len({s.token_ids for _, s in flat}) > 0.8 * len(flat)
    assert {s.finish for _, s in flat} == {"stop", "length"}
    for prompt, sample in flat:
        (alone,) = Engine(model, [EOS]).sample([prompt], seeds=[[sample.seed]], **settings)
        assert alone[0].token_ids == sample.token_ids and alone[0].text == sample.text
    other = Engine(model, [EOS], max_batch=64).sample(many[::-1][1:], n=3, seeds=9, **settings)[::-1]
    assert [[s.text for s in row] for row in other] == [[s.text for s in row] for row in together[:-1]]


@pytest.mark.parametrize("kind", ["llama", "neox"])
@pytest.mark.parametrize("trunk", [0, 40])
def test_a_trace_holds_the_lower_layers_states_of_all_that_was_read(kind, trunk):
    """Planted: a row's states after rows have changed places; eos taken for a word; the common beginning left out."""
    model, many = make(kind), prompts(5, trunk=trunk)
    settings = {"n": 3, "max_tokens": 14, "seeds": 9, "decode": as_text, "stops_after": ["17 "]}
    engine = Engine(model, [EOS], max_batch=5, budget=64)
    plain, trace = engine.sample(many, **settings), Trace(1, (7, 8))
    traced = engine.sample(many, **settings, trace=trace)
    assert [[s.token_ids for s in row] for row in traced] == [[s.token_ids for s in row] for row in plain]
    assert sorted(trace.found) == [(i, j) for i in range(len(many)) for j in range(3)]
    ended = set()
    for (i, j), (ids, states) in trace.found.items():
        drawn = list(plain[i][j].token_ids)
        ended.add(drawn[-1] if drawn[-1] in (EOS, 17) else None)
        assert ids == [*many[i], *(drawn[:-1] if drawn[-1] == EOS else drawn), 7, 8]
        (alone,) = tree.pack([ids])
        torch.testing.assert_close(states, split.trunk_states(model, alone, 1), atol=1e-5, rtol=1e-5)
    assert ended == {EOS, 17, None}


def test_a_trace_ends_at_the_window_and_stays_empty_without_trees_or_memory(monkeypatch):
    model, prompt = make("llama"), [1 + i % 50 for i in range(WINDOW - 3)]
    trace = Trace(1, (7,))
    ((sample,),) = Engine(model).sample([prompt], max_tokens=9, trace=trace)
    ids, states = trace.found[0, 0]
    assert ids == [*prompt, *sample.token_ids[:-1]] and len(states) == len(ids) == WINDOW - 1
    trace = Trace(1, (7,))
    Engine(make("sliding")).sample([prompt[:5]], max_tokens=3, trace=trace)
    assert not trace.found
    cost = 2 * (5 + 2 * (3 + 1)) * model.config.hidden_size * 4  # two prompts, each reply and its next token twice
    for free, found in ((2 * cost, 2), (2 * cost - 2, 0), (None, 2)):
        monkeypatch.setattr("truing.models.engine.free_memory", lambda device, free=free: free)
        trace = Trace(1, (7,))
        Engine(model, max_batch=1).sample([prompt[:5], prompt[5:10]], max_tokens=3, trace=trace)
        assert len(trace.found) == found


@kinds
def test_greedy_equals_transformers_generate(kind):
    model = make(kind)
    for trunk in (0, 40):
        many = prompts(6, trunk=trunk)
        ours = Engine(model, [EOS], max_batch=3, budget=64).sample(many, max_tokens=15, temperature=0)
        for prompt, (sample,) in zip(many, ours, strict=True):
            ids = torch.tensor([prompt])
            settings = {"max_new_tokens": 15, "do_sample": False, "eos_token_id": EOS, "pad_token_id": 0}
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0]
            assert list(sample.token_ids) == whole[len(prompt) :].tolist()


@pytest.mark.parametrize("kind", FALLBACKS)
def test_models_without_trees_score_and_sample_alike_and_say_so_once(kind, capsys):
    tree.explain_fallback.cache_clear()
    model, many = make(kind), prompts(7, 4)
    engine = Engine(model, [EOS], max_batch=3)
    samples = engine.sample(many, n=2, max_tokens=8, seeds=1)
    flat = [(p, s) for p, row in zip(many, samples, strict=True) for s in row]
    rescored = engine.score([[*p, *s.token_ids] for p, s in flat], [len(p) for p, _ in flat])
    for (prompt, sample), scored in zip(flat, rescored, strict=True):
        np.testing.assert_allclose(sample.logprobs, scored, atol=1e-3)
        np.testing.assert_allclose(scored, one_by_one(model, [*prompt, *sample.token_ids], len(prompt)), atol=1e-4)
    assert capsys.readouterr().err.count("padded") == 1


def test_each_distinct_prompt_is_read_once_whenever_its_replies_enter():
    engine = Engine(make("llama"), max_batch=4)
    engine.sample([[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2, 3, 4, 5]], n=6, max_tokens=1)
    assert engine.tokens_run == 5 + 4  # a beginning is shared only by prompts that enter together
    engine = Engine(make("llama"))
    engine.sample([[1, 2, 3, 4, 5], [1, 2, 3, 9]], n=3, max_tokens=4)
    assert engine.tokens_run == 6 + 6 * 3  # the last token drawn is not read


def test_equal_prompts_count_on_and_explicit_seeds_are_kept():
    engine, prompt = Engine(make("llama")), [1, 2, 3]
    four = engine.sample([prompt], n=4, max_tokens=12, seeds=8)[0]
    twice = engine.sample([prompt, prompt], n=2, max_tokens=12, seeds=8)
    assert [s for row in twice for s in row] == four and len({s.token_ids for s in four}) == 4
    assert four[0].seed == 8 and len({s.seed for s in four}) == 4
    longer = engine.sample([prompt], max_tokens=20, seeds=8)[0][0]
    assert longer.token_ids[:12] == four[0].token_ids
    assert engine.sample([[1, 2, 4]], max_tokens=12, seeds=8)[0][0].token_ids != four[0].token_ids
    (again,) = engine.sample([prompt], n=2, max_tokens=12, seeds=[[four[3].seed, four[1].seed]])
    assert [s.token_ids for s in again] == [four[3].token_ids, four[1].token_ids]
    with pytest.raises(ValueError, match="2 numbers for each of the 1 prompts"):
        engine.sample([prompt], n=2, max_tokens=1, seeds=[[1]])


def test_two_prompts_do_not_draw_with_the_same_random_numbers():
    rows = drawing.make_rows([[1, 2], [1, 3]], 2, 0)
    for row in rows:
        row.limit = 5
    assert len({tuple(row.noise(3)) for row in rows}) == 4


SPLITS = [
    [part for part in np.split(np.array(list("\n\nHuman:")), cuts)]
    for k in range(8)
    for cuts in itertools.combinations(range(1, 8), k)
]


@pytest.mark.parametrize("joined", ["neither", "before", "after"])
def test_a_stop_string_is_found_however_it_falls_into_tokens(joined, monkeypatch):
    assert len(SPLITS) == 128
    engine, script = Engine(make("llama")), iter([0])
    monkeypatch.setattr(drawing, "draw", lambda logits, *args: (torch.tensor([next(script)]), torch.zeros(1)))
    for number, cut in enumerate(SPLITS):
        pieces = ["".join(part) for part in cut]
        if joined == "before":
            pieces[0] = "Hi\n" + pieces[0]
        elif joined == "after":
            pieces[-1] += " more"
        words = ["Hi", "\n", "Human", ":", *pieces, "junk"]
        stops, decode = ["zzz", "\n\nHuman:"], lambda ids, words=words: "".join(words[i] for i in ids)
        ends, row = Ends(frozenset(), stops, decode), Row(0, 0, (1,), 0, limit=20)
        assert [ends.take(row, i, 0.0) for i in range(4 + len(pieces))] == [False] * (3 + len(pieces)) + [True]
        found = [ends.sample(row)]
        if number % 16 == 0:
            script = iter(range(len(words)))
            found += engine.sample([[1]], max_tokens=20, stops=stops, decode=decode)[0]
        for sample in found:
            assert sample.text == "Hi\nHuman:" + ("Hi\n" if joined == "before" else "")
            assert sample.token_ids == tuple(range(4 + len(pieces))) and sample.finish == "stop"


@pytest.mark.parametrize("stop, after, text", [([], ["."], "Hi."), (["i."], ["."], "H"), (["!"], ["?", "."], "Hi.")])
def test_a_reply_may_end_after_a_string_that_its_text_keeps(stop, after, text):
    words = ["H", "i", '."', " And", "!"]
    ends = Ends(frozenset(), stop, lambda ids: "".join(words[i] for i in ids), after)
    row = Row(0, 0, (1,), 0, limit=9)
    assert [ends.take(row, i, 0.0) for i in range(3)] == [False, False, True]
    sample = ends.sample(row)
    assert (sample.text, sample.token_ids, sample.finish) == (text, (0, 1, 2), "stop")


def test_a_stop_string_may_be_cut_inside_a_character():
    stop, data = "é→", "x é→ y".encode()
    decode = lambda ids: bytes(data[i] for i in ids).decode(errors="replace")  # noqa: E731
    ends, row = Ends(frozenset(), [stop], decode), Row(0, 0, (1,), 0, limit=50)
    taken = [ends.take(row, i, 0.0) for i in range(len(data) - 2)]
    assert taken.index(True) == len("x é→".encode()) - 1
    row.ids = row.ids[: taken.index(True) + 1]
    assert ends.sample(row).text == "x "


def test_the_text_is_decoded_only_where_a_stop_could_end():
    calls: list[int] = []
    words = ["a", "b", ":"]
    decode = lambda ids: calls.append(len(ids)) or "".join(words[i] for i in ids)  # noqa: E731
    ends, row = Ends(frozenset(), ["Human:"], decode), Row(0, 0, (1,), 0, limit=99)
    for token in [0, 1] * 20 + [2, 0]:
        ends.take(row, token, 0.0)
    assert sorted(calls) == [1, 1, 1, 41]


def test_eos_ends_a_reply_and_is_kept_in_its_ids_only(monkeypatch):
    script = iter([5, 6, EOS, 7])
    monkeypatch.setattr(drawing, "draw", lambda logits, *args: (torch.tensor([next(script)]), torch.zeros(1)))
    ((sample,),) = Engine(make("llama"), EOS).sample([[1]], max_tokens=9, decode=as_text)
    assert (sample.token_ids, sample.text, sample.finish) == ((5, 6, EOS), "5 6 ", "stop")


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"temperature": 1.7, "top_k": 9, "top_p": 0.8}]
)
def test_draws_follow_the_definition_of_temperature_top_k_and_top_p(settings):
    logits = 2 * torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    expected = (logits[0] / settings.get("temperature", 1.0)).double().softmax(-1).tolist()
    order = sorted(range(12), key=lambda i: -expected[i])[: settings.get("top_k", 12)]
    total, kept, mass = sum(expected[i] for i in order), [], 0.0
    for i in order:  # the fewest whose probability reaches top_p
        if mass >= settings.get("top_p", 1.0):
            break
        kept.append(i)
        mass += expected[i] / total
    probabilities = [expected[i] if i in kept else 0.0 for i in range(12)]
    n, wanted = 20_000, np.array(probabilities) / sum(probabilities)
    tokens, logprobs = draw(logits.expand(n, -1), noise(n, 12), **settings)
    counts = torch.bincount(tokens, minlength=12).numpy()
    assert counts[wanted == 0].sum() == 0
    chi2 = ((counts - n * wanted)[wanted > 0] ** 2 / (n * wanted)[wanted > 0]).sum()
    assert chi2 < scipy.stats.chi2.ppf(0.9999, (wanted > 0).sum() - 1)
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])  # raw, whatever was drawn from


def noise(rows: int, vocabulary: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).exponential(size=(rows, sum(drawing.noise_shape(vocabulary)))))


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 9, 10, 101])
def test_every_token_of_any_vocabulary_can_be_drawn_and_no_other(vocabulary):
    blocks, width = drawing.noise_shape(vocabulary)
    assert (blocks - 1) * width < vocabulary <= blocks * width
    tokens, _ = draw(torch.zeros(4000, vocabulary), noise(4000, vocabulary))
    assert sorted(set(tokens.tolist())) == list(range(vocabulary))


def test_a_draw_survives_rounding_errors_in_the_logits():
    n, vocabulary = 500, 20_000
    logits = 3 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)).expand(n, -1)
    shaken = logits + 3e-6 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(1))
    first, second = (draw(each, noise(n, vocabulary))[0] for each in (logits, shaken))
    assert (first != second).sum() <= 1 and len(set(first.tolist())) > 200


def test_draws_at_the_edges():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    for extreme in itertools.product([1e-30, 1.0, 100.0], repeat=4):
        assert draw(logits, torch.tensor([extreme]))[0].item() in (0, 2)
    assert draw(logits, torch.ones(1, 4), temperature=0)[0].tolist() == [2]
    ties = distribution(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), top_k=2)
    assert (ties[0] > 0).tolist() == [True, True, True, False]


def test_samples_have_the_models_frequencies():
    model, n = make("llama"), 3000
    engine = Engine(model, max_batch=1000)
    counts = np.bincount([s.token_ids[1] for s in engine.sample([[4, 2]], n=n, max_tokens=2, seeds=1)[0]], minlength=V)
    with torch.no_grad():
        first = model(torch.tensor([[4, 2]])).logits[0, -1].softmax(-1)
        second = model(torch.tensor([[4, 2, i] for i in range(V)])).logits[:, -1].softmax(-1)
    expected = (first[:, None] * second).sum(0).numpy() * n
    common = expected > 5
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert common.sum() > 20 and chi2 < scipy.stats.chi2.ppf(0.9999, common.sum())


def test_nothing_to_do_is_done():
    engine = Engine(make("llama"), EOS)
    assert engine.sample([], max_tokens=5) == [] and engine.score([], []) == [] and engine.next_logprobs([]) == []
    ((sample,),) = engine.sample([[1, 2]], max_tokens=0, seeds=4)
    assert (sample.text, sample.token_ids, sample.logprobs, sample.finish, sample.seed) == ("", (), (), "length", 4)
    assert engine.tokens_run == 0


def test_the_window_caps_replies_and_refuses_what_does_not_fit():
    engine = Engine(make("gpt2"))
    ((sample,),) = engine.sample([[1] * (WINDOW - 3)], max_tokens=50)
    assert len(sample.token_ids) == 3 and sample.finish == "length"
    with pytest.raises(ValueError, match="Prompt 1 has 160 tokens and the model reads at most 160"):
        engine.sample([[1], [1] * WINDOW], max_tokens=1)
    with pytest.raises(ValueError, match="Sequence 0 has 161 tokens"):
        engine.score([[1] * (WINDOW + 1)], [1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stops": "x", "decode": as_text}, "list of non-empty strings"),
        ({"stops": [""], "decode": as_text}, "list of non-empty strings"),
        ({"stops": ["x"]}, "need `decode`"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(make("llama")).sample([[1]], **({"max_tokens": 1} | settings))


def test_malformed_jobs_are_refused():
    engine = Engine(make("llama"))
    with pytest.raises(ValueError, match="Sequence 1 has no tokens"):
        engine.sample([[1], []], max_tokens=1)
    with pytest.raises(ValueError, match="start 0; expected 1"):
        engine.score([[1, 2]], [0])
    with pytest.raises(ValueError, match="2 sequences but 1 starts"):
        engine.score([[1, 2], [1]], [1])


def test_dropout_is_off_inside_and_the_mode_returns():
    config = GPT2Config(**SIZE, n_positions=WINDOW, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config).train()
    engine = Engine(model)
    first, second = (engine.score(prompts(), [1] * 8) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) and model.transformer.drop.training
    assert engine.sample([[1]], max_tokens=9, seeds=1) == engine.sample([[1]], max_tokens=9, seeds=1)


@pytest.mark.parametrize("mixed", [False, True])
def test_bfloat16_and_two_precisions_agree_with_rescoring_roughly(mixed):
    model = make("llama").to(torch.bfloat16)
    if mixed:
        model.model.layers[1].float()
    engine = Engine(model, max_batch=4)
    samples = engine.sample(prompts(), n=2, max_tokens=8)
    flat = [(p, s) for p, row in zip(prompts(), samples, strict=True) for s in row]
    rescored = engine.score([[*p, *s.token_ids] for p, s in flat], [len(p) for p, _ in flat])
    assert max(np.abs(np.array(s.logprobs) - e).max() for (_, s), e in zip(flat, rescored, strict=True)) < 0.2


def test_progress_counts_finished_replies_across_groups_of_prompts_of_like_length():
    told: list[tuple[int, int]] = []
    model = AutoModelForCausalLM.from_config(LlamaConfig(**WIDE | {"max_position_embeddings": 400})).eval()
    many = [[1] * 300, [1, 2], [5], [7] * 301]
    engine = Engine(model, EOS, max_batch=3, cache_bytes=1)  # one row at a time
    engine.sample(many, n=2, max_tokens=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 8) for i in range(1, 9)]


def test_holes_in_the_batch_are_filled_from_its_end():
    assert fill_holes([True, False, True, False, True]) == [0, 4, 2]
    assert fill_holes([False, False]) == [] and fill_holes([True]) == [0]


@pytest.mark.parametrize("kind", [*CONFIGS, "sliding"])
def test_settings_of_ones_own_give_what_a_call_of_ones_own_gives(kind):
    """Catches a neighbour's temperature, cut-off, limit or stop string."""
    engine, asked = Engine(make(kind), EOS, max_batch=3), prompts(1)
    decode = lambda ids: "".join(chr(97 + i % 26) for i in ids)  # noqa: E731
    kinds = [
        Settings(9),
        Settings(12, temperature=0.0),
        Settings(0),
        Settings(7, temperature=1.5, top_k=5),
        Settings(12, top_p=0.6, stops=("c", "kk")),
        Settings(12, stops_after=("d",)),
    ]
    each = [kinds[i % len(kinds)] for i in range(len(asked))]
    seeds = [[i, 100 + i] for i in range(len(asked))]
    together = engine.sample(asked, n=2, each=each, decode=decode, seeds=seeds)
    for prompt, s, seed, found in zip(asked, each, seeds, together, strict=True):
        alone = engine.sample([prompt], n=2, each=[s], decode=decode, seeds=[seed])[0]
        assert [(x.text, x.token_ids, x.finish, x.seed) for x in found] == [
            (x.text, x.token_ids, x.finish, x.seed) for x in alone
        ]
        assert np.allclose([x.logprob for x in found], [x.logprob for x in alone], atol=1e-4)
    assert len({s.finish for found in together for s in found}) == 2
    with pytest.raises(ValueError, match="prompts but 1 settings"):
        engine.sample(asked, each=each[:1])
    with pytest.raises(ValueError, match="top_p is 2"):
        engine.sample(asked, each=[*each[:-1], Settings(3, top_p=2)], decode=decode)


def test_the_pieces_of_a_streamed_reply_make_its_text():
    engine, asked, heard = Engine(make("llama"), EOS, max_batch=3), prompts(1), dict[tuple[int, int], list[str]]()
    words = ["a", "b", "\n", "\n\n", "Hum", "an:", "é", " ", ".", "You"]
    decode = lambda ids: "".join(words[i % len(words)] for i in ids)  # noqa: E731
    drawn = engine.sample(
        asked,
        n=4,
        max_tokens=30,
        stops=["\n\nHuman:", "bb"],
        stops_after=["."],
        decode=decode,
        on_text=lambda prompt, reply, piece: heard.setdefault((prompt, reply), []).append(piece),
    )
    texts = {(i, j): s.text for i, found in enumerate(drawn) for j, s in enumerate(found) if s.text}
    assert {place: "".join(pieces) for place, pieces in heard.items()} == texts
    assert max(map(len, heard.values())) > 3, "in pieces, not at the end"


def test_what_may_become_a_stop_string_or_half_a_character_is_not_told_yet():
    words = ["Hi", "\n\nHu", "ge", "\n\nHuman", ":", "\ufffd", "é"]

    def decode(ids):
        return "".join(words[i] for i in ids).replace("\ufffdé", "é")

    ends, row = Ends(frozenset(), ["\n\nHuman:"], decode), Row(0, 0, (1,), 0, limit=99)
    told = [ends.news(row, ends.take(row, i, 0.0)) for i in (0, 1, 2, 5, 6, 3, 4)]
    assert told == ["Hi", "", "\n\nHuge", "", "é", "", ""]
