"""What our two quantizers, that of diffusers and that of transformers, do alike: load folders, and give floats back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrowquant_nb.diffusers.skeleton import SHOWN, check_model, headers, make_room
from arrowquant_nb.errors import ConfigurationError

if TYPE_CHECKING:
    from arrowquant_nb.diffusers.folder_config import FolderConfig
    from arrowquant_nb.storage.safetensors_file import TensorEntry

__all__ = ["FolderLoader"]


class FolderLoader:
    """The first base of both quantizers."""

    quantization_config: FolderConfig
    pre_quantized: bool

    def validate_environment(self, *_: object, device_map: object = None, **__: object) -> None:
        """Refuse what cannot be done while loading: to quantize, and to leave a part of the model on the disk.

        Quantizing takes the master copy and its calibration. Codes are buffers, which neither library leaves on the
        disk; it is called again when the library has found the places of an automatic map.
        """
        if not self.pre_quantized:
            raise ConfigurationError(
                "from_pretrained loads our quantized folders; to quantize a float model, load it and call "
                "arrowquant_nb.diffusers.quantize_pipeline"
            )
        places = device_map if isinstance(device_map, dict) else {"": device_map}
        on_disk = [name or "the model" for name, place in places.items() if str(place) == "disk"]
        if on_disk:
            raise ConfigurationError(
                f"device_map puts {', '.join(map(repr, on_disk[:SHOWN]))} on the disk, to which quantized layers "
                "cannot be loaded: load without it, or with a larger max_memory, and offload the loaded model by "
                "accelerate.disk_offload(model, FOLDER, DEVICE, offload_buffers=True)"
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
