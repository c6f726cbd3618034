from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config

from truing.models import split, tree

V, LAYERS = 50, 3
BASE = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
BASE |= {"bos_token_id": None, "eos_token_id": None}
WIDE = BASE | {"intermediate_size": 64, "max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2),
    "tied llama": LlamaConfig(**WIDE, num_key_value_heads=2, tie_word_embeddings=True),
    "neox": GPTNeoXConfig(**WIDE),
    "qwen2": Qwen2Config(**WIDE, num_key_value_heads=2),
    "sliding mistral": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=4),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)


def make(kind: str, **changes):
    torch.manual_seed(0)
    config = GPT2Config(**BASE) if kind == "gpt2" else type(CONFIGS[kind])(**CONFIGS[kind].to_dict() | changes)
    return AutoModelForCausalLM.from_config(config).eval()


def texts() -> tree.Pack:
    r = random.Random(0)
    trunk = [r.randrange(V) for _ in range(12)]
    (p,) = tree.pack([trunk[: r.randrange(4, 12)] + [r.randrange(V) for _ in range(5)] for _ in range(6)])
    return p


def state(model) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


@kinds
def test_top_after_trunk_equals_the_whole_model(kind):
    model, p = make(kind), texts()
    whole = tree.hidden(model, p)
    for k in range(LAYERS + 1):
        states = split.trunk_states(model, p, k)
        assert (states is None) == (k == 0)
        torch.testing.assert_close(split.top_hidden(model, p, states, k), whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(split.top_hidden(model, p, None, k), whole, atol=1e-5, rtol=1e-5)
    direct = model(torch.tensor([p.ids[p.paths[0]].tolist()])).logits[0]
    torch.testing.assert_close(split.logits(model, whole[p.paths[0]]), direct, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_gradients_of_the_top_equal_those_of_the_whole_model(kind):
    model, p, k = make(kind), texts(), 2

    def gradients(hidden):
        model.zero_grad()
        split.logits(model, hidden).square().mean().backward()
        return {name: q.grad.clone() for name, q in split.top_parameters(model, k)}

    ours, theirs = (
        gradients(split.top_hidden(model, p, split.trunk_states(model, p, k), k)),
        gradients(tree.hidden(model, p)),
    )
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-4)
    trunk = [q.grad for q in tree.body(model).layers[0].parameters()]
    gradients(split.top_hidden(model, p, split.trunk_states(model, p, k), k))
    assert all(g is None or not g.any() for g in [q.grad for q in tree.body(model).layers[0].parameters()]), trunk


def test_trunk_states_have_no_gradient_and_no_dropout_and_modes_survive():
    model, p = make("neox", hidden_dropout=0.5, attention_dropout=0.5).train(), texts()
    first, second = split.trunk_states(model, p, 2), split.trunk_states(model, p, 2)
    assert torch.equal(first, second) and not first.requires_grad
    assert all(m.training for m in model.modules())


@kinds
def test_a_shared_trunk_is_the_same_storage_and_training_the_top_leaves_the_base_alone(kind):
    base, p, k = make(kind), texts(), 2
    before, scores = state(base), tree.forward(base, p).detach()
    policy = split.share_trunk(base, k)
    assert type(policy) is type(base) and split.same_trunk(base, policy, k)
    torch.testing.assert_close(tree.forward(policy, p), scores)
    mine = {q.data_ptr() for q in base.parameters()}
    top = split.top_parameters(policy, k)
    names = {name for name, _ in top}
    for name, q in policy.named_parameters():
        assert (q.data_ptr() in mine) == (name not in names) and q.requires_grad == (name in names), name
    assert {n.split(".")[-3] for n in names if "layers" in n} & {"0", "1"} == set()
    optimizer = torch.optim.SGD([q for _, q in top], lr=0.5)
    states = split.trunk_states(base, p, k)
    split.logits(policy, split.top_hidden(policy, p, states, k)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())
    assert not torch.allclose(tree.forward(policy, p), scores, atol=1e-3)
    assert split.same_trunk(base, policy, k)


@pytest.mark.parametrize("kind", ["llama", "tied llama", "neox"])
def test_a_model_with_a_shared_trunk_saves_and_loads_like_any_other(kind, tmp_path):
    base, p = make(kind), texts()
    policy = split.share_trunk(base, 2)
    for _, q in split.top_parameters(policy, 2):
        q.data += 0.1
    policy.config.pad_token_id = 7
    assert base.config.pad_token_id is None
    policy.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(tree.forward(again, p), tree.forward(policy, p))


def test_without_frozen_layers_everything_is_copied():
    base = make("gpt2")
    policy = split.share_trunk(base, 0)
    assert not {q.data_ptr() for q in base.parameters()} & {q.data_ptr() for q in policy.parameters()}
    assert all(q.requires_grad for q in policy.parameters()) and len(split.top_parameters(policy, 0)) > 10
    torch.testing.assert_close(split.top_hidden(policy, texts(), None, 0), tree.hidden(base, texts()))


def test_a_bare_body_can_share_its_trunk_too():
    body = make("llama").model
    top = split.share_trunk(body, 2)
    assert top.layers[0] is body.layers[0] and top.layers[2] is not body.layers[2] and len(body.layers) == LAYERS
    assert body.norm is not top.norm and type(top) is type(body)


def test_same_trunk_sees_what_changes_the_states():
    a = make("llama")
    assert split.same_trunk(a, make("llama"), 2) and not split.same_trunk(a, make("neox"), 2)
    b = make("llama")
    b.model.layers[2].mlp.up_proj.weight.data += 1
    assert split.same_trunk(a, b, 2) and not split.same_trunk(a, b, 3)
    b.model.layers[1].input_layernorm.weight.data[0] += 1e-3
    assert split.same_trunk(a, b, 1) and not split.same_trunk(a, b, 2)
    c = make("llama")
    c.resize_token_embeddings(V + 3)
    assert split.same_trunk(a, c, 2)
    c.get_input_embeddings().weight.data[5] += 1e-3
    assert not split.same_trunk(a, c, 2)
    turned = make("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert not split.same_trunk(a, turned, 2)


def test_what_cannot_be_split_is_refused_with_a_way_out():
    gpt2, p = make("gpt2"), texts()
    for call in (
        lambda: split.share_trunk(gpt2, 1),
        lambda: split.trunk_states(gpt2, p, 1),
        lambda: split.top_hidden(gpt2, p, None, 2),
        lambda: split.top_parameters(gpt2, 1),
    ):
        with pytest.raises(ValueError, match="gpt2 model: it adds its positions.*Use frozen layers 0"):
            call()
    with pytest.raises(ValueError, match="Cannot freeze 4 layers: this model has 3"):
        split.share_trunk(make("llama"), 4)


@pytest.mark.parametrize("kind", ["llama", "tied llama", "neox", "gpt2"])
def test_a_folded_temperature_divides_the_logits(kind):
    model, folded = make(kind), make(kind)
    split.fold_temperature(folded, 0.7)
    ids = texts().ids[None]
    with torch.no_grad():
        torch.testing.assert_close(folded(ids).logits * 0.7, model(ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="above 0"):
        split.fold_temperature(model, 0.0)


def test_a_temperature_is_refused_where_the_norm_does_not_scale_the_logits():
    model = make("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head, torch.nn.Tanh())
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(ValueError, match="cannot be built into"):
        split.fold_temperature(model, 0.5)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("kind", ["llama", "neox", "gpt2", "sliding mistral"])
@pytest.mark.parametrize("k", [0, 1])
def test_layers_computed_again_give_the_same_gradients_from_less_memory(kind, k):
    if kind == "gpt2" and k:
        return
    model, p = make(kind).eval(), texts()
    for _, parameter in split.top_parameters(model, k):
        parameter.requires_grad_(True)

    def gradients():
        kept = {}  # storages held for the backward pass
        model.zero_grad()
        states = split.trunk_states(model, p, k)

        def hold(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            loss = split.top_hidden(model, p, states, k).square().mean()
        loss.backward()
        return {n: q.grad.clone() for n, q in split.top_parameters(model, k) if q.grad is not None}, sum(kept.values())

    plain, much = gradients()
    split.recompute_layers(model, k)
    again, little = gradients()
    assert plain.keys() == again.keys() and len(plain) > 5
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-8)
    assert little < 0.5 * much, (little, much)
    with torch.no_grad():
        torch.testing.assert_close(tree.hidden(model, p), tree.hidden(make(kind), p))
