"""The bundled folder is a genuine, small, self-describing diffusers component."""

import json
import sys
from subprocess import run

import numpy as np
import pytest
from safetensors import safe_open

from arrowquant_nb import samples

FOLDER = samples.WEIGHTS / "digits-dit"


def test_names_lists_the_bundled_model_and_load_returns_its_folder():
    assert samples.names() == ("digits-dit",)
    assert samples.load("digits-dit") == FOLDER
    assert (FOLDER / "config.json").is_file()


@pytest.mark.parametrize("name", ["digits_dit", "", "../weights/digits-dit", "DIGITS-DIT"])
def test_an_unknown_name_is_refused_and_the_valid_ones_are_named(name):
    with pytest.raises(LookupError, match="digits-dit"):
        samples.load(name)
    with pytest.raises(LookupError, match="digits-dit"):
        samples.runnable(name)


def test_the_whole_folder_stays_below_four_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 4_000_000


def test_weights_are_stored_in_float16_under_the_names_the_model_expects():
    model = samples.runnable("digits-dit")
    with safe_open(FOLDER / "diffusion_pytorch_model.safetensors", "numpy") as file:
        stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
        assert {part.get_dtype() for part in stored.values()} == {"F16"}
        assert {name: tuple(part.get_shape()) for name, part in stored.items()} == {
            name: array.shape for name, array in model.weights.items()
        }


def test_no_json_file_names_a_path_of_the_training_machine():
    for path in FOLDER.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        assert not any(f'"{root}' in text for root in ("/", "~", "C:"))


def test_metadata_states_the_modality_at_top_level():
    assert json.loads((FOLDER / "metadata.json").read_text(encoding="utf-8"))["modality"] == "image"


def test_the_card_states_data_licence_and_measured_figures():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for fact in ("load_digits", "CC BY 4.0", "BSD 3-clause", "MIT", "judge's accuracy", "Seed 0", "torch 2."):
        assert fact in card
    assert "{" not in card.split("## The data")[1]


def test_running_the_model_imports_no_torch():
    program = (
        "import sys, numpy; from arrowquant_nb import samples; samples.load('digits-dit');"
        "samples.runnable('digits-dit').sample(numpy.array([3]), 0, steps=1);"
        "print([m for m in ('torch', 'diffusers', 'sklearn') if m in sys.modules])"
    )
    done = run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_generated_digits_look_like_their_class_mean():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    scans = sklearn_datasets.load_digits()
    means = np.stack([scans.images[scans.target == digit].mean(0) for digit in range(10)]) / 8 - 1
    labels = np.arange(30) % 10
    images = samples.runnable("digits-dit").sample(labels, seed=7)
    nearest = ((images[:, None] - means) ** 2).mean((2, 3)).argmin(1)
    assert (nearest == labels).mean() >= 0.8  # a nearest-mean reader gets 90 % of the real scans
