"""The quantization method of diffusers that loads and saves our folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from arrowquant_nb.diffusers.folder_config import FolderConfig
from arrowquant_nb.diffusers.folder_loader import FolderLoader
from arrowquant_nb.diffusers.safetensors_only import save_any_way, save_safetensors_only
from arrowquant_nb.diffusers.skeleton import finish, offload_codes, stored_weight_at
from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.export.folder_settings import QUANT_METHOD
from arrowquant_nb.runtime.float_layers import restore_floats

if TYPE_CHECKING:
    import torch

    from arrowquant_nb.storage.quantized import QuantizedModel
    from arrowquant_nb.storage.safetensors_file import TensorEntry

__all__ = ["ArrowQuantConfig", "ArrowQuantizer", "attach", "register"]


class ArrowQuantConfig(FolderConfig, QuantizationConfigMixin):
    """`quantization_config` of a model of diffusers."""


class ArrowQuantizer(FolderLoader, DiffusersQuantizer):
    """Loads packed codes into quantized layers, saves them as they are, and decodes them on demand."""

    quantization_config: ArrowQuantConfig

    def __init__(self, quantization_config: ArrowQuantConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._files: list[str] = []
        self._entries: dict[str, TensorEntry] = {}

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Note the files, which come with no other call; names stay."""
        self._files = checkpoint_files
        return loaded_keys

    def _process_model_before_weight_loading(self, model: Any, **_: object) -> None:
        self._entries = self.make_ready(model, self._files)

    def check_if_quantized_param(
        self, model: Any, param_value: torch.Tensor, param_name: str, state_dict: dict[str, Any], **_: object
    ) -> bool:
        """Tell whether a tensor is part of a quantized weight."""
        del param_value, state_dict
        return stored_weight_at(model, param_name) is not None

    def check_quantized_param_shape(self, param_name: str, current: torch.Tensor, loaded: torch.Tensor) -> bool:
        """Refuse another shape; headers were checked, so the file changed meanwhile."""
        raise ShapeMismatchError(
            f"{param_name} changed while it was loaded: {tuple(loaded.shape)} instead of {tuple(current.shape)}"
        )

    def create_quantized_param(
        self,
        model: Any,
        param_value: torch.Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Any],
        *_: object,
        **__: object,
    ) -> None:
        """Put a part in its place as it is stored: `param_value` may have been cast to the model's dtype."""
        found = stored_weight_at(model, param_name)
        if found is None:
            raise AssertionError(param_name)
        value = state_dict.get(param_name, param_value)
        weight, part = found
        setattr(weight, part, value.to(target_device) if target_device is not None else value)

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """Nothing is missing: headers were checked."""
        del model, prefix
        return [key for key in missing_keys if key not in self._entries]

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:
        decoded = finish(model, self.quantization_config.settings)
        if decoded:
            self.quantization_config = self.quantization_config.without(decoded)
            model.register_to_config(quantization_config=self.quantization_config)
        # By this mark diffusers refuses `to(dtype)`; our layers take a cast and keep their codes.
        model.is_quantized = False
        save_safetensors_only(model)
        return model

    def _dequantize(self, model: Any) -> Any:
        config = {name: value for name, value in model.config.items() if name != "quantization_config"}
        model._internal_dict = FrozenDict(config)  # noqa: SLF001 - diffusers has no way to take a key out
        save_any_way(model)
        return restore_floats(model)

    @property
    def is_serializable(self) -> bool:
        """`save_pretrained` writes the codes."""
        return True


def register() -> None:
    """Make our method known to diffusers; doing so again changes nothing."""
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = ArrowQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = ArrowQuantConfig


def attach(model: Any, folder: QuantizedModel) -> None:
    """Let a model whose layers come from a model folder be saved like one that was loaded."""
    config = ArrowQuantConfig.held_by(model, folder)
    model.hf_quantizer = ArrowQuantizer(config, pre_quantized=True)
    model.quantization_method = config.quant_method
    model.register_to_config(quantization_config=config)
    offload_codes(model)
    save_safetensors_only(model)
