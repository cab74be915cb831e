"""The bundled folders are genuine, small, self-describing models of diffusers and transformers."""

import json
import re
import sys
from subprocess import run

import numpy as np
import pytest
from safetensors import safe_open

from arrowquant_nb import samples

NAMES = ("digits-dit", "docs-mlm", "plucks-dit", "stdlib-mlm")
MODALITIES = {"digits-dit": "image", "docs-mlm": "text", "plucks-dit": "audio", "stdlib-mlm": "code"}
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def models():
    return {name: samples.runnable(name) for name in NAMES}


def test_names_lists_the_bundled_models_and_load_returns_their_folders():
    assert samples.names() == NAMES
    for name in NAMES:
        assert samples.load(name) == samples.WEIGHTS / name
        assert (samples.load(name) / "config.json").is_file()


@pytest.mark.parametrize("name", ["digits_dit", "", "../weights/digits-dit", "DIGITS-DIT", "digits-judge"])
def test_an_unknown_name_is_refused_and_the_valid_ones_are_named(name):
    for function in (samples.load, samples.runnable, samples.modality, samples.evaluate):
        with pytest.raises(LookupError, match="digits-dit, docs-mlm, plucks-dit, stdlib-mlm"):
            function(name)


@every
def test_a_folder_stays_below_four_megabytes(name):
    assert sum(path.stat().st_size for path in samples.load(name).rglob("*") if path.is_file()) <= 4_000_000


@every
def test_weights_are_stored_in_float16_under_the_names_the_model_expects(name, models):
    (path,) = samples.load(name).glob("*.safetensors")
    with safe_open(path, "numpy") as file:
        stored = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
        assert {part.get_dtype() for part in stored.values()} == {"F16"}
        assert {key: tuple(part.get_shape()) for key, part in stored.items()} == {
            key: array.shape for key, array in models[name].weights.items()
        }


@every
def test_layers_are_weights_that_exist_with_a_bias_or_a_table_beside_them(name, models):
    model = models[name]
    for layer, shape in model.layers().items():
        assert model.weights[layer].shape == shape
        assert len(shape) >= 2


@every
def test_no_json_file_names_a_path_of_the_training_machine(name):
    for path in samples.load(name).rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        assert not any(f'"{root}' in text for root in ("/root", "/tmp", "/home", "~/", "C:"))


@every
def test_metadata_states_the_modality_at_top_level(name):
    metadata = json.loads((samples.load(name) / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["modality"] == samples.modality(name) == MODALITIES[name]


@every
def test_the_card_states_data_licence_and_measured_figures(name):
    card = (samples.load(name) / "README.md").read_text(encoding="utf-8")
    facts = {
        "digits-dit": ("load_digits", "CC BY 4.0", "BSD 3-clause", "judge's accuracy"),
        "docs-mlm": ("pydoc_data.topics", "PSF licence", "NELBO", "`truth`"),
        "plucks-dit": ("Karplus and Strong", "Griffin-Lim", "v loss"),
        "stdlib-mlm": ("standard library", "PSF licence", "NELBO", "`textwrap.py`"),
    }
    for fact in (*facts[name], "MIT", "Seed 0", "torch 2."):
        assert fact in card
    assert not re.search(r"\{[a-z_]+[:}]", card.split("## Measured")[0])


@every
def test_running_a_model_imports_no_torch(name):
    program = (
        f"import sys; from arrowquant_nb import samples; samples.load({name!r});"
        f"samples.runnable({name!r}).sample(2, 0, steps=1);"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'sklearn') if m in sys.modules])"
    )
    done = run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_looking_a_model_up_imports_no_numpy():
    program = "import sys; from arrowquant_nb import samples; samples.load('docs-mlm'); print('numpy' in sys.modules)"
    done = run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_generated_digits_look_like_their_class_mean():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    scans = sklearn_datasets.load_digits()
    means = np.stack([scans.images[scans.target == digit].mean(0) for digit in range(10)]) / 8 - 1
    labels = np.arange(30) % 10
    images = samples.runnable("digits-dit").sample(labels, seed=7)
    nearest = ((images[:, None] - means) ** 2).mean((2, 3)).argmin(1)
    assert (nearest == labels).mean() >= 0.8  # a nearest-mean reader gets 90 % of the real scans
