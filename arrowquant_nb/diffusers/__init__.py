"""Quantized models in diffusers and transformers: importing this registers the method `arrowquant` with both.

import arrowquant_nb.diffusers

model = FluxTransformer2DModel.from_pretrained("folder-of-arrowquant-export-to-diffusers")

libraries.py             which of them, from which version
skeleton.py              a float model made ready for packed codes, and finished
folder_config.py         `quantization_config` as the two libraries want it
folder_loader.py         what the two methods do alike
diffusers_backend.py     the method of diffusers
transformers_backend.py  the method of transformers, for text encoders and language models
safetensors_only.py      `save_pretrained` of diffusers held to the format that loads
saving.py                a model with swapped layers made known to its library
pipelines.py             `quantize_pipeline`: a pipeline quantized in place
pixel_pipeline.py        a pipeline for transformers on pixels, such as the bundled ones
"""

from arrowquant_nb.diffusers.libraries import unfit as _unfit

# Before the imports below, so that what is missing or too old is said in one sentence.
if _unfit():
    raise ImportError(f"arrowquant_nb.diffusers {_unfit()}")

from arrowquant_nb.diffusers import diffusers_backend, pixel_pipeline, transformers_backend
from arrowquant_nb.diffusers.diffusers_backend import ArrowQuantConfig
from arrowquant_nb.diffusers.pipelines import PipelineQuantization, quantize_pipeline
from arrowquant_nb.diffusers.pixel_pipeline import PixelDiTPipeline
from arrowquant_nb.diffusers.sample_models import load_sample, through_torch

__all__ = [
    "ArrowQuantConfig",
    "PipelineQuantization",
    "PixelDiTPipeline",
    "load_sample",
    "quantize_pipeline",
    "through_torch",
]

diffusers_backend.register()
transformers_backend.register()
pixel_pipeline.register()
