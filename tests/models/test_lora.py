from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from truing.models import lora, split, tree
from truing.models.family import byte_tokenizer, new_model
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.types import Dialogue

SHAPES = ["llama", "neox", "gpt2"]


def toy(shape: str, layers: int = 3) -> PreferenceModel:
    model = new_model(shape, layers=layers, width=32, heads=2, max_positions=256, seed=3)  # type: ignore[arg-type]
    return PreferenceModel.new(LM(model, byte_tokenizer(), name="toy"), seed=1)


def talks() -> list[Dialogue]:
    return [Dialogue().ask("why?").reply(text) for text in ("because", "because not", "it is so")]


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_begin_at_zero_and_train_alone(shape: str) -> None:
    pm = toy(shape)
    before, weights = pm.score(talks()), {n: p.clone() for n, p in pm.backbone.named_parameters()}
    pm.backbone = lora.adapt(pm.backbone, 4, 8, first=1, seed=2)
    assert (pm.score(talks()) == before).all() and tree.supports_trees(pm.backbone)
    names = {name for name, p in pm.backbone.named_parameters() if p.requires_grad}
    assert names == {n.removeprefix("backbone.") for n, _ in pm.trainable_parameters() if n != "head.weight"}
    assert names and all("lora_" in n for n in names)
    assert {n.split(".")[3] for n in names} == {"1", "2"}, "only layers above the frozen one"
    again = lora.adapt(toy(shape).backbone, 4, 8, first=1, seed=2)
    assert all(torch.equal(p, dict(pm.backbone.named_parameters())[n]) for n, p in again.named_parameters())
    (pack,) = tree.pack([pm.pm_ids(d) for d in talks()])
    optimizer = torch.optim.SGD([p for _, p in pm.trainable_parameters()], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        pm.values(pack)[torch.stack([p[-1] for p in pack.paths])].sum().backward()
        optimizer.step()
    assert abs(pm.score(talks()) - before).max() > 0.1
    for name, p in pm.backbone.named_parameters():
        plain = name.removeprefix("base_model.model.").replace("base_layer.", "")
        assert plain not in weights or torch.equal(p, weights[plain]), "the weights themselves stay"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_saved_folder_is_plain_and_scores_alike(shape: str, tmp_path: Path) -> None:
    pm = toy(shape)
    pm.backbone = lora.adapt(pm.backbone, 4, 8)
    with torch.no_grad():
        for name, p in pm.backbone.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    scores = pm.score(talks())
    pm.save(tmp_path / "model")
    assert (pm.score(talks()) == scores).all() and lora.adapted(pm.backbone), "saving changes nothing"
    assert not list(tmp_path.glob("model/adapter*"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    given = tokenizer([pm.text(d) for d in talks()], return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = plain(**given).logits[:, 0].numpy()
    assert abs(theirs - scores).max() < 1e-4
    assert abs(PreferenceModel.load(tmp_path / "model").score(talks()) - scores).max() < 1e-4
    toy_scores = toy(shape).score(talks())
    assert abs(scores - toy_scores).max() > 1e-2, "the adapters say something"


def test_nothing_left_to_adapt_is_said() -> None:
    with pytest.raises(ValueError, match="nothing to adapt above 3 frozen layers"):
        lora.adapt(toy("llama").backbone, 4, 8, first=3)


@pytest.mark.parametrize("shape", ["llama", "neox"])
def test_a_top_with_adapters_reads_a_frozen_trunks_states(shape: str) -> None:
    pm = toy(shape)
    (pack,) = tree.pack([pm.pm_ids(d) for d in talks()])
    states = split.trunk_states(pm.backbone, pack, 2)
    pm.backbone = lora.adapt(pm.backbone, 4, 8, first=2)
    torch.testing.assert_close(split.top_hidden(pm.backbone, pack, states, 2), tree.hidden(pm.backbone, pack))
