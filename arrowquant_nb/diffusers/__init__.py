"""Quantized models in diffusers and transformers: importing this registers the method `arrowquant` with both.

import arrowquant_nb.diffusers

pipe = DiffusionPipeline.from_pretrained("folder-of-arrowquant-export-to-diffusers")

skeleton.py             a float model made ready for packed codes, and finished
folder_config.py        `quantization_config` as the two libraries want it
diffusers_backend.py    the method of diffusers
transformers_backend.py the method of transformers, for text encoders and language models
pipelines.py            `quantize_pipeline`: a pipeline quantized in place
"""

from arrowquant_nb.diffusers import diffusers_backend, transformers_backend

__all__ = []

diffusers_backend.register()
transformers_backend.register()
