"""The quantization method of diffusers that loads and saves our folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from arrowquant_nb.diffusers.folder_config import FolderConfig
from arrowquant_nb.diffusers.skeleton import check_model, finish, headers, make_room, stored_weight_at
from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.export.folder_settings import QUANT_METHOD, FolderSettings

if TYPE_CHECKING:
    import torch

    from arrowquant_nb.storage.safetensors_file import TensorEntry

__all__ = ["ArrowQuantConfig", "ArrowQuantizer", "attach", "register"]


class ArrowQuantConfig(FolderConfig, QuantizationConfigMixin):
    """`quantization_config` of a model of diffusers."""


class ArrowQuantizer(DiffusersQuantizer):
    """Loads packed codes into quantized layers, and saves them as they are."""

    quantization_config: ArrowQuantConfig

    def __init__(self, quantization_config: ArrowQuantConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._entries: dict[str, TensorEntry] = {}

    def validate_environment(self, *_: object, **__: object) -> None:
        """Refuse to quantize while loading: that takes the master copy and its calibration."""
        if not self.pre_quantized:
            raise ConfigurationError(
                "from_pretrained loads our quantized folders; to quantize a float model, load it and call "
                "arrowquant_nb.diffusers.quantize_pipeline"
            )

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Check the files' headers against the settings; names stay."""
        self._entries = headers(checkpoint_files, self.quantization_config.settings)
        return loaded_keys

    def _process_model_before_weight_loading(self, model: Any, **_: object) -> None:
        check_model(model, self.quantization_config.settings, self._entries)
        make_room(model, self.quantization_config.settings)

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
        decoded = finish(model)
        if decoded:
            self.quantization_config = self.quantization_config.without(decoded)
            model.register_to_config(quantization_config=self.quantization_config)
        return model

    @property
    def is_serializable(self) -> bool:
        """`save_pretrained` writes the codes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes are not trained."""
        return False


def register() -> None:
    """Make our method known to diffusers; doing so again changes nothing."""
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = ArrowQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = ArrowQuantConfig


def attach(model: Any, settings: FolderSettings) -> None:
    """Let a model that was quantized in place be saved like one that was loaded."""
    config = ArrowQuantConfig(settings).held_by(model)
    model.hf_quantizer = ArrowQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.register_to_config(quantization_config=config)
