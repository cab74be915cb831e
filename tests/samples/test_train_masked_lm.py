"""Masked language models: the corpora leak nothing, training lowers the loss, and what is saved runs in NumPy."""

import numpy as np
import pytest

from arrowquant_nb.samples.masked_lm import MaskedLM
from arrowquant_nb.samples.train import corpora
from arrowquant_nb.samples.vocabulary import MASK, encode

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from arrowquant_nb.samples.train import masked_lm, masked_lm_figures  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(encode("the quick brown fox jumps over the lazy dog\n" * 40))


def test_struck_paragraphs_are_left_out_however_they_are_wrapped():
    texts = ["a b\n\nkept", "too\n\na\n   b\n\nend"]
    assert corpora._without(texts, {"a b"}) == "kept\n\ntoo\n\nend"


def test_nothing_held_out_stands_in_the_training_prose():
    prose = corpora.prose()
    known = {" ".join(paragraph.split()) for paragraph in prose.train.split("\n\n")}
    for text in (prose.calibration, prose.evaluation):
        paragraphs = {" ".join(paragraph.split()) for paragraph in text.split("\n\n")} - {""}
        assert len(paragraphs) > 20
        assert not paragraphs & known
    assert len(prose.train) > 1_000_000


def test_the_first_layers_look_at_their_neighbours_before_training():
    torch.manual_seed(0)
    model = masked_lm.new_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model.bert(torch.randint(3, 99, (2, 64)), output_attentions=True).attentions
    for layer, offsets in enumerate(masked_lm.FIRST_OFFSETS[:1]):
        for head, offset in enumerate(offsets):
            found = attentions[layer][:, head].argmax(-1)[:, 8:56]
            assert (found == torch.arange(8, 56) + offset).float().mean() > 0.9


def test_a_batch_masks_the_shares_it_says(ids):
    torch.manual_seed(0)
    recipe = masked_lm.Recipe(batch_size=64)
    windows, masked, shares = masked_lm.masked_batch(ids, recipe, 1.0)
    assert windows.shape == masked.shape == (64, 64)
    assert masked.any(1).all()
    assert shares.min() >= masked_lm.LEAST_MASKED
    assert shares.max() <= 1
    np.testing.assert_allclose(masked.float().mean(1), shares[:, 0], atol=0.25)
    assert abs(float(shares.mean()) - 0.51) < 0.02  # spread evenly, not drawn
    assert masked_lm.masked_batch(ids, recipe, 0.2)[2].max() <= 0.2


def test_training_lowers_the_loss_repeats_itself_and_what_is_saved_runs_in_numpy(tmp_path, ids):
    recipe = masked_lm.Recipe(steps=20, batch_size=8, warmup=2)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(masked_lm.train(ids, recipe))
    (model, loss), (again, same) = results
    assert loss == same < np.log(99)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    corpus = corpora.Corpus("", "calibrate " * 20, "evaluate " * 20)
    masked_lm.save(model, tmp_path / "tiny", recipe, corpus, {"modality": "text"})
    ours = MaskedLM.from_folder(tmp_path / "tiny")
    steps = list(ours.trajectories(2, 0))
    assert (steps[0].inputs["input_ids"] == MASK).any()
    assert masked_lm_figures.difference_from_transformers(tmp_path / "tiny", steps[:2]) <= 1e-4


def test_cards_have_a_fact_for_every_place():
    from arrowquant_nb.samples.train import docs, stdlib

    for module in (docs, stdlib):
        assert "{calibration}" in module.CARD
        filled = module.card()
        assert "`" in filled
        assert "{python}" not in filled
