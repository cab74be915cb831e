"""The training script trains, repeats itself, and writes a folder that the NumPy forward pass reads."""

import numpy as np
import pytest

from arrowquant_nb.samples.dit import DiT
from arrowquant_nb.samples.runnable import Step

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

from arrowquant_nb.samples.train import digits as digits_recipe  # noqa: E402
from arrowquant_nb.samples.train import dit as train  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def digits():
    return digits_recipe.read_digits(0)


@pytest.fixture(scope="module")
def scheduler():
    return diffusers.DDIMScheduler(**train.SCHEDULER)


def new_model():
    return train.new_model(train.config(8, 2, 10))


def trained(digits, scheduler, steps=3):
    torch.manual_seed(0)
    return train.train(digits, new_model(), train.Recipe(steps=steps, batch_size=8, warmup=1), scheduler)


def test_the_split_is_1437_to_360_in_range_and_disjoint_from_its_shuffle(digits):
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.min() == -1
    assert digits.train_images.max() == 1
    assert torch.equal(digits.train_labels, digits_recipe.read_digits(0).train_labels)
    assert not torch.equal(digits.train_labels, digits_recipe.read_digits(1).train_labels)


def test_the_untrained_model_predicts_nothing_and_never_drops_labels_by_itself():
    model = new_model()
    noise, labels = torch.randn(64, 1, 8, 8), torch.full((64,), 3)
    assert not model(noise, timestep=torch.full((64,), 500), class_labels=labels).sample.any()
    embedder = model.transformer_blocks[0].norm1.emb.class_embedder
    assert embedder.dropout_prob > 0
    assert len(embedder(labels).unique(dim=0)) == 1


def test_training_lowers_the_loss_and_repeats_itself(digits, scheduler):
    first, loss = trained(digits, scheduler)
    again, same = trained(digits, scheduler)
    assert loss == same
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    before, after = (
        train.mean_loss(m, digits.test_images, digits.test_labels, scheduler, repeats=1)
        for m in (new_model(), trained(digits, scheduler, steps=30)[0])
    )
    assert after < before


def test_the_saved_folder_runs_in_numpy_as_in_diffusers(tmp_path, digits, scheduler):
    model, _ = trained(digits, scheduler)
    train.save(model, tmp_path / "tiny", train.Recipe(steps=3), {"modality": "image"})
    ours = DiT.from_folder(tmp_path / "tiny")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "tiny", torch_dtype=torch.float32).eval()
    assert train.difference_from_diffusers(theirs, ours) <= 1e-4
    step = Step({"hidden_states": np.ones((1, 1, 8, 8), np.float32), "class_labels": np.array([1])}, 500)
    assert np.abs(ours.forward(step)).max() > 0


def test_nearest_distance_is_the_root_mean_square_to_the_closest():
    images = np.zeros((1, 2, 2), np.float32)
    others = np.stack([np.full((2, 2), 0.5), np.full((2, 2), -2.0)]).astype(np.float32)
    assert digits_recipe.nearest_distance(images, others) == pytest.approx(0.5)
