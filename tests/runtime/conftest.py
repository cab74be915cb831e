"""Bundled samples as quantized folders and as the models of diffusers and transformers that load them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from arrowquant_nb import samples
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.storage.quantized import open_quantized

torch = pytest.importorskip("torch")


class Folders:
    """Quantized folders of bundled samples by name and width, each made once; a copy of a sample is not calibrated."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str, **settings) -> Path:
        label = self._root / "-".join([name, *(f"{k}={v}" for k, v in sorted(settings.items()))])
        if not label.exists():
            source = self._root / f"{name}-source"
            if not source.exists():
                shutil.copytree(samples.load(name), source)
            config = DiffusionQuantConfig(**{"method": "uls", "min_accuracy": 0.5, **settings})
            ArrowQuantV2(config).quantize_diffusion_model(source, label)
        return label


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Make quantized samples; see `Folders`."""
    return Folders(tmp_path_factory.mktemp("runtime"))


def numpy_model(name, folder):
    """The bundled forward pass in NumPy over the folder's dequantized weights."""
    return type(samples.runnable(name)).from_folder(samples.load(name), open_quantized(folder).weights())


def torch_model(folder, device="cpu"):
    """The model of a folder's config by the class that diffusers or transformers has for it, with random weights."""
    if (folder / "scheduler").exists():
        diffusers = pytest.importorskip("diffusers")
        kind = diffusers.DiTTransformer2DModel
        with torch.device(device):
            return kind.from_config(kind.load_config(folder))
    transformers = pytest.importorskip("transformers")
    with torch.device(device):
        return transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder))


def call(model, step):
    """One network call as the NumPy models take it, the prediction as NumPy returns it."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in step.inputs.items()}
    with torch.no_grad():
        if "hidden_states" not in tensors:
            return model(**tensors).logits.numpy()
        times = torch.full((len(tensors["hidden_states"]),), step.time)
        return model(tensors["hidden_states"], times, tensors["class_labels"]).sample.numpy()
