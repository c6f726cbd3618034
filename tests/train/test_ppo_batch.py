"""Which tokens count, where they stand, and that trees and chunks change no number. Each test names its mistake."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from ppo_toys import PROMPTS, entropy, exact_kl, toy, toy_lm, toy_pm

from truing.models import tree
from truing.train import ppo_models
from truing.train.ppo_batch import Reply, draw, kept, mask_of, pack_replies
from truing.train.ppo_math import policy_loss, value_loss
from truing.types import Dialogue, Sample


def decode(ids: list[int]) -> str:
    return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def test_what_stands_after_the_stop_is_dropped() -> None:
    """Rows 12, 13. Planted: only eos looked for; the cut one token early or late."""
    stop = [*b"\n\nHuman:"]
    assert kept([1, 2, 257, 5, 257], [257], ["\n\nHuman:"], decode) == (3, "stop")
    assert kept([*b"Hi", *stop, *b" junk"], [257], ["\n\nHuman:"], decode) == (2 + len(stop), "stop")
    assert kept([*b"Hi", *stop, 257], [257], ["\n\nHuman:"], decode) == (2 + len(stop), "stop")
    assert kept([*b"Hi", 257, *stop], [257], ["\n\nHuman:"], decode) == (3, "stop")
    assert kept([*b"Hi\n\nHuman"], [257], ["\n\nHuman:"], decode) == (9, "length")


def test_a_stop_string_is_found_however_tokens_split_it() -> None:
    """Row 13. Planted: looking for the stop's own tokens."""
    text = "ab\n\nHuman: c"
    rng = np.random.default_rng(0)
    for _ in range(30):
        cuts = sorted({0, len(text), *rng.integers(1, len(text), 4).tolist()})
        pieces = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        count, finish = kept(
            range(len(pieces)), [], ["\n\nHuman:"], lambda ids, pieces=pieces: "".join(pieces[i] for i in ids)
        )
        assert finish == "stop"
        assert "\n\nHuman:" in "".join(pieces[:count]) and "\n\nHuman:" not in "".join(pieces[: count - 1])


def with_junk(sample: Any, extra: list[int]) -> Any:
    """A sampler that goes on after a stop."""

    def drawn(*args: Any, **kwargs: Any) -> list[list[Sample]]:
        def longer(s: Sample) -> Sample:
            if s.finish != "stop":
                return s
            more = (*s.token_ids, *extra), (*s.logprobs, *[-1.0] * len(extra))
            return dataclasses.replace(s, token_ids=more[0], logprobs=more[1])

        return [[longer(s) for s in samples] for samples in sample(*args, **kwargs)]

    return drawn


def test_junk_after_the_stop_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 12. Planted: ``kept`` left out of ``draw``."""
    results = []
    for junk in (False, True):
        ppo = toy(samples_per_prompt=8, max_new_tokens=24)
        with torch.no_grad():  # a policy that often stops
            ppo.models.policy.lm_head.weight[257] += 2.0 * ppo.models.policy.lm_head.weight[:257].norm() / 257**0.5
        if junk:
            monkeypatch.setattr(ppo.policy, "sample", with_junk(ppo.policy.sample, [72, 105, 257]))
        ppo.checked = True
        replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
        assert any(r.finish == "stop" for r in replies)
        groups, batch = ppo.look(replies)
        rewards = ppo.advantages(batch, batch.scores)
        ppo.models.backward(groups[0][0], batch, int(batch.mask.sum()), clip=0.2, value_coef=0.5)
        grads = [p.grad.clone() for p in ppo.models.policy.parameters() if p.grad is not None]
        results.append((rewards, batch.kl, batch.returns, *grads))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_replies_are_the_sampled_ids() -> None:
    """Row 9. Planted: ids of the re-tokenised text."""
    lm = toy_lm()
    replies = draw(lm, PROMPTS, n=4, max_tokens=12, seed=0)
    again = [lm.tokenizer(r.dialogue.last.text, add_special_tokens=False)["input_ids"] for r in replies]
    assert any(r.ids != ids for r, ids in zip(replies, again, strict=True))  # bytes that are no text
    scored = lm.engine.score([r.prompt_ids + r.ids for r in replies], [len(r.prompt_ids) for r in replies])
    for reply, found in zip(replies, scored, strict=True):
        np.testing.assert_allclose(found, reply.sampler_logprobs, atol=1e-4)


def test_a_reply_that_ends_after_a_string_keeps_its_token() -> None:
    """Planted: the string cut from the text, or tokens after it kept."""
    lm = toy_lm()
    plain = draw(lm, PROMPTS, n=8, max_tokens=24, seed=0)
    common = Counter(c for r in plain for c in set(r.dialogue.last.text) if c.isalnum()).most_common(1)[0][0]
    cut = draw(lm, PROMPTS, n=8, max_tokens=24, stop_after=[common], seed=0)
    for a, b in zip(plain, cut, strict=True):
        assert a.ids[: len(b.ids)] == b.ids
        np.testing.assert_allclose(a.sampler_logprobs[: len(b.ids)], b.sampler_logprobs, atol=1e-4)
        head, found, _ = a.dialogue.last.text.partition(common)
        assert b.dialogue.last.text == head + found
    assert sum(len(b.ids) < len(a.ids) and b.finish == "stop" for a, b in zip(plain, cut, strict=True)) > 1


def test_replies_are_drawn_at_temperature_one() -> None:
    """Row 17. Planted: T = 0.7; the sampler's raw log-probs alone do not show it, their mean does."""
    lm = toy_lm(scale=4.0)
    replies = draw(lm, PROMPTS[:1], n=400, max_tokens=1, seed=3)
    logprobs = np.array([r.sampler_logprobs[0] for r in replies])
    logp = torch.tensor(lm.engine.next_logprobs([replies[0].prompt_ids])[0])
    assert abs(logprobs.mean() + float(entropy(logp))) < 4 * logprobs.std() / 20


def reply(prompt: list[int], ids: list[int], number: int = 0) -> Reply:
    return Reply(number, prompt, ids, [-1.0] * len(ids), Dialogue().ask("x").reply("y"), "length")


def test_each_reply_token_has_one_cell_and_its_own_target() -> None:
    """Rows 11, 14. Planted: starts one early (a prompt token counted); row and width swapped in the cell."""
    replies = [reply([7, 8], [1, 2, 3]), reply([7, 8], [1, 2]), reply([9], [4])]
    mask = mask_of(replies)
    assert mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    for budget in (3, 100):
        parts = pack_replies(replies, [0, 1, 2], 3, budget=budget, pm_paths=[[7, 8, 1, 5], [7, 8, 1, 2, 5], [9, 5]])
        found = torch.full((9,), -1)
        for part in parts:
            assert (found[part.cells] == -1).all()
            found[part.cells] = part.targets
            before = part.pack.ids[part.places].tolist()
            expected = {0: 8, 1: 1, 2: 2, 3: 8, 4: 1, 6: 9}
            assert before == [expected[int(c)] for c in part.cells]
        assert found.view(3, 3).tolist() == [[1, 2, 3], [1, 2, -1], [4, -1, -1]]
        ends = sorted(
            (int(r), int(part.pack.ids[e])) for part in parts for e, r in zip(part.ends, part.rows, strict=True)
        )
        assert ends == [(0, 5), (1, 5), (2, 5)]
    assert len(parts) == 1 and len(parts[0].pack) == 10  # 7 8 · 1 · 2 · 3, 5, 5 | 5 | 9 · 4 | 5 stand once each


def one_by_one(model: Any, r: Reply) -> torch.Tensor:
    """Log-probs [tokens, V] at a reply's positions, from the whole model on this sequence alone."""
    ids = torch.tensor([r.prompt_ids + r.ids])
    return model(ids).logits[0, len(r.prompt_ids) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize(("frozen", "vocab"), [(0, 264), (1, 264), (1, 259)])
def test_measured_numbers_equal_one_reply_at_a_time(frozen: int, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 8, 16, 20. Planted: KL(π0‖π); the mean over tokens; values one place late; models swapped."""
    monkeypatch.setattr(ppo_models, "HEAD_CELLS", 259 * 16)  # several chunks
    lm = toy_lm(vocab=vocab)
    pm = toy_pm(lm, frozen=frozen)
    ppo = toy(pm, lm, frozen_layers=frozen, tokens_per_pack=40)
    assert (ppo.models.pm is not None) == bool(frozen)
    with torch.no_grad():
        for p in [*ppo.models.policy.parameters(), *ppo.models.value.parameters()]:
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))
    replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
    _, batch = ppo.look(replies, minibatches=2)
    np.testing.assert_allclose(batch.scores, pm.score([r.dialogue for r in replies]), atol=1e-4)
    for i, r in enumerate(replies):
        n = len(r.ids)
        logp, logq = one_by_one(ppo.models.policy, r), one_by_one(lm.model, r)
        targets = torch.tensor(r.ids)[:, None]
        for ours, theirs in (
            (batch.lp_old, logp.gather(1, targets)[:, 0]),
            (batch.lp_ref, logq.gather(1, targets)[:, 0]),
            (batch.kl, exact_kl(logp, logq)),
            (batch.entropy, entropy(logp)),
        ):
            torch.testing.assert_close(ours[i, :n], theirs, atol=1e-4, rtol=1e-4)
            assert not ours[i, n:].any()
        hidden = tree.body(ppo.models.value.backbone)(torch.tensor([r.prompt_ids + r.ids])).last_hidden_state[0]
        values = (hidden @ ppo.models.value.head.weight[0])[len(r.prompt_ids) - 1 : -1]
        torch.testing.assert_close(batch.values[i, :n], values, atol=1e-4, rtol=1e-4)


def test_the_trunk_reads_no_reply_again_that_sampling_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: states of another reply; a text that is tokenised otherwise taken for what was drawn."""
    lm = toy_lm()
    ppo = toy(toy_pm(lm, frozen=1), lm, frozen_layers=1, tokens_per_pack=40)
    replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
    assert all(r.read for r in replies)
    pm = ppo.models.pm
    assert pm is not None
    said = [r.prompt_ids + (r.ids[:-1] if r.ids[-1] in lm.engine.eos_ids else r.ids) + [pm.eoc_id] for r in replies]
    as_drawn = {r.dialogue: ids for r, ids in zip(replies, said, strict=True)}  # the toy's bytes are rarely text
    replies[1] = dataclasses.replace(replies[1], dialogue=replies[1].dialogue.prompt.reply("Something else"))
    usual = pm.pm_ids
    monkeypatch.setattr(pm, "pm_ids", lambda dialogue: as_drawn.get(dialogue) or usual(dialogue))
    path = pm.pm_ids(replies[1].dialogue)
    assert path != said[1]
    read: list[int] = []
    whole = ppo_models.trunk_states
    monkeypatch.setattr(
        ppo_models, "trunk_states", lambda model, pack, k: read.append(len(pack)) or whole(model, pack, k)
    )
    _, batch = ppo.look(replies)
    alone = tree.pack([replies[1].prompt_ids + replies[1].ids, path], 40)
    assert sum(read) == sum(map(len, alone))
    read.clear()
    _, plain = ppo.look([dataclasses.replace(r, read=None) for r in replies])
    assert sum(read) > 2 * sum(map(len, alone))
    for name in ("scores", "lp_old", "lp_ref", "kl", "entropy", "values"):
        torch.testing.assert_close(getattr(batch, name), getattr(plain, name), atol=1e-5, rtol=1e-5)


def test_a_judge_apart_reads_in_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: float32 where the run chose bf16."""
    lm = toy_lm()
    pm = toy_pm(lm)
    ppo = toy(pm, lm)
    ppo.models.autocast = torch.bfloat16
    seen, read = [], pm.read

    def reading(*given: Any, budget: int) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return read(*given, budget=budget)

    monkeypatch.setattr(pm, "read", reading)
    ppo.look(ppo._sample(ppo.policy, ppo.prompts_of(0), 5))
    assert seen == [True]


@pytest.mark.parametrize("frozen", [0, 1])
def test_chunked_gradients_equal_plain_autograd(frozen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: division by each chunk's own tokens; the head's part of the gradient lost; value_coef forgotten; k3 of
    the wrong sign, a clip fraction of one side only."""
    monkeypatch.setattr(ppo_models, "HEAD_CELLS", 259 * 16)
    lm = toy_lm()
    ppo = toy(toy_pm(lm), lm, frozen_layers=frozen, tokens_per_pack=40)
    replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
    groups, batch = ppo.look(replies)
    ppo.advantages(batch, batch.scores)
    tokens = int(batch.mask.sum())
    assert len(groups[0]) > 1
    batch.lp_old += torch.where(batch.mask, 0.3 * torch.randn_like(batch.lp_old), 0.0)  # so that clipping happens
    torch.nn.init.normal_(ppo.models.value.head.weight, std=0.1)
    said = [ppo.models.backward(part, batch, tokens, clip=0.2, value_coef=0.7) for part in groups[0]]
    both = torch.nn.ModuleList([ppo.models.policy, ppo.models.value])
    ours = {n: p.grad.clone() for n, p in both.named_parameters() if p.grad is not None}
    assert len(ours) == sum(p.requires_grad for p in both.parameters())
    both.zero_grad()
    widest = 0.0
    total, plain = torch.tensor(0.0), dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
    for i, r in enumerate(replies):
        n = len(r.ids)
        lp = one_by_one(ppo.models.policy, r).gather(1, torch.tensor(r.ids)[:, None])[:, 0]
        hidden = tree.body(ppo.models.value.backbone)(torch.tensor([r.prompt_ids + r.ids])).last_hidden_state[0]
        v = (hidden @ ppo.models.value.head.weight[0])[len(r.prompt_ids) - 1 : -1]
        policy = policy_loss(lp, batch.lp_old[i, :n], batch.advantages[i, :n], 0.2).sum()
        value = value_loss(v, batch.values[i, :n], batch.returns[i, :n]).sum()
        total = total + policy + 0.7 * value
        ratio = (lp - batch.lp_old[i, :n]).exp().detach()
        widest = max(widest, (ratio - 1).abs().max().item())
        outside, k3 = ((ratio < 0.8) | (ratio > 1.2)).sum(), (ratio - 1 - ratio.log()).sum()
        for name, number in zip(plain, (policy, value, outside, k3), strict=True):
            plain[name] += number.item()
    for name, number in plain.items():
        assert sum(s[name] for s in said) == pytest.approx(number, rel=1e-3), name
    assert max(s["max_ratio_deviation"] for s in said) == pytest.approx(widest, rel=1e-3)
    assert plain["clip_fraction"] > 0
    (total / tokens).backward()
    for name, p in both.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(ours[name], p.grad, atol=2e-5, rtol=2e-3, msg=name)


def test_what_the_policy_thinks_of_prompts_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 11. Planted: ``starts`` one token early, so that a prompt token is predicted too."""
    ppo = toy()
    replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
    plain = ppo_models.Models.hidden

    def disturbed(self: Any, model: Any, part: Any) -> torch.Tensor:
        out = plain(self, model, part)
        first = {int(path[len(r.prompt_ids) - 1]) for path, m in zip(part.pack.paths, part.pack.members, strict=True)
                 if m < len(replies) for r in [replies[m]]}  # fmt: skip
        inside = {int(p) for path, m in zip(part.pack.paths, part.pack.members, strict=True) if m < len(replies)
                  for p in path[: len(replies[m].prompt_ids) - 1]}  # fmt: skip
        noise = torch.zeros(len(out), 1)
        noise[sorted(inside - first)] = 100.0
        return out + noise

    found = []
    for hidden in (plain, disturbed):
        monkeypatch.setattr(ppo_models.Models, "hidden", hidden)
        groups, batch = ppo.look(replies)
        rewards = ppo.advantages(batch, batch.scores)
        loss = [ppo.models.backward(part, batch, 10, clip=0.2, value_coef=0.5) for part in groups[0]]
        found.append((batch.kl, batch.lp_old, batch.values, rewards, torch.tensor([loss[0]["policy_loss"]])))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("text", "kind"), [("", "empty"), (" \n", "empty"), ("1.", "finished"), (".", "empty"), ("é", "finished")]
)
def test_a_reply_without_a_word_is_empty_though_it_ended(text: str, kind: str) -> None:
    assert Reply(0, [1], [2], [0.0], Dialogue().ask("x").reply(text), "stop").kind == kind
