"""What our two quantizers, that of diffusers and that of transformers, do alike: load folders, and give floats back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrowquant_nb.diffusers.skeleton import check_model, headers, make_room
from arrowquant_nb.errors import ConfigurationError

if TYPE_CHECKING:
    from arrowquant_nb.diffusers.folder_config import FolderConfig
    from arrowquant_nb.storage.safetensors_file import TensorEntry

__all__ = ["FolderLoader"]


class FolderLoader:
    """The first base of both quantizers."""

    quantization_config: FolderConfig
    pre_quantized: bool

    def validate_environment(self, *_: object, **__: object) -> None:
        """Refuse to quantize while loading: that takes the master copy and its calibration."""
        if not self.pre_quantized:
            raise ConfigurationError(
                "from_pretrained loads our quantized folders; to quantize a float model, load it and call "
                "arrowquant_nb.diffusers.quantize_pipeline"
            )

    def make_ready(self, model: Any, files: list[str]) -> dict[str, TensorEntry]:
        """Check weight files against the settings and the model, put empty layers into it, and return the tensors."""
        settings = self.quantization_config.settings
        entries = headers(files, settings)
        check_model(model, settings, entries)
        make_room(model, settings)
        return entries

    @property
    def is_trainable(self) -> bool:
        """Codes are not trained."""
        return False
