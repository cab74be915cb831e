"""A pipeline for class-conditional diffusion transformers on pixels, such as the bundled samples: no autoencoder.

diffusers' own `DiTPipeline` decodes latents and knows 1,000 classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel
from diffusers.utils.outputs import BaseOutput

from arrowquant_nb import samples
from arrowquant_nb.errors import ConfigurationError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PixelDiTPipeline", "PixelOutput", "register"]


class PixelOutput(BaseOutput):
    """What a `PixelDiTPipeline` returns."""

    images: NDArray[np.float32]
    """float32 (n, height, width, channels) in [0, 1]."""


class PixelDiTPipeline(DiffusionPipeline):
    """Draw images of classes with classifier-free guidance.

    Parameters
    ----------
    transformer : denoises pixels in [-1, 1]; its last class is the null class of the guidance.
    scheduler : of diffusers.
    """

    model_cpu_offload_seq = "transformer"
    transformer: Any
    scheduler: Any
    progress_bar: Any
    register_modules: Any

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @classmethod
    def from_sample(cls, name: str) -> PixelDiTPipeline:
        """Return the pipeline of a bundled model, `digits-dit` or `plucks-dit`.

        Raises
        ------
        ModelNotFoundError
            No bundled transformer has that name.

        """
        if name not in samples.names() or not (samples.load(name) / "scheduler").is_dir():
            raise ModelNotFoundError(f"there is no bundled transformer {name!r}: digits-dit and plucks-dit are")
        folder = samples.load(name)
        options: dict[str, Any] = {"local_files_only": True}
        transformer: Any = DiTTransformer2DModel
        scheduler: Any = DDIMScheduler
        return cls(
            transformer.from_pretrained(folder, torch_dtype=torch.float32, **options),
            scheduler.from_pretrained(folder / "scheduler", **options),
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> PixelOutput | tuple[NDArray[np.float32]]:
        """Draw one image per label.

        Parameters
        ----------
        class_labels
            Integers from 0; the null class is the last one.
        guidance_scale
            1 is none.
        num_inference_steps
            Steps of the scheduler.
        generator
            Of the starting noise; the same state starts from the same noise whatever the weights.
        return_dict
            Whether to return a `PixelOutput` rather than a tuple.

        Raises
        ------
        ConfigurationError
            A label that the model does not have.

        """
        config, device = self.transformer.config, self._execution_device  # not where offloaded weights lie
        null = config.num_embeds_ada_norm
        labels = torch.as_tensor(class_labels, device=device)
        if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() >= null:
            raise ConfigurationError(
                f"class_labels must be a list of classes in 0..{null - 1}, got {class_labels!r:.80}"
            )
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        images = noise.to(device, self.transformer.dtype) * self.scheduler.init_noise_sigma
        both = torch.cat([labels, torch.full_like(labels, null)])
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            doubled = self.scheduler.scale_model_input(torch.cat([images, images]), t)
            output = self.transformer(doubled, timestep=t.expand(len(both)), class_labels=both).sample
            with_class, without = output.chunk(2)
            output = without + guidance_scale * (with_class - without)
            images = self.scheduler.step(output, t, images).prev_sample
        found: Any = (images.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return PixelOutput(images=found) if return_dict else (found,)


def register() -> None:
    """Let `DiffusionPipeline.from_pretrained` find the class, which it looks for among the names of diffusers."""
    diffusers.PixelDiTPipeline = PixelDiTPipeline
