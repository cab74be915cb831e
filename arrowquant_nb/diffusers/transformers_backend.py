"""The quantization method of transformers that loads and saves our folders: text encoders, masked language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from arrowquant_nb.diffusers.folder_config import FolderConfig
from arrowquant_nb.diffusers.folder_loader import FolderLoader
from arrowquant_nb.diffusers.safetensors_only import NO_PICKLE
from arrowquant_nb.diffusers.skeleton import decode_rest, finish, offload_codes, tied_names
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.export.folder_settings import QUANT_METHOD
from arrowquant_nb.runtime.float_layers import restore_floats
from arrowquant_nb.runtime.loading import layer_over
from arrowquant_nb.runtime.module_tree import quantized_layers, replace_module

if TYPE_CHECKING:
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["ArrowQuantLanguageConfig", "ArrowQuantLanguageQuantizer", "attach", "register"]


class ArrowQuantLanguageConfig(FolderConfig, QuantizationConfigMixin):
    """`quantization_config` of a model of transformers."""


class ArrowQuantLanguageQuantizer(FolderLoader, HfQuantizer):
    """Loads packed codes into quantized layers, saves them as they are, and decodes them on demand."""

    quantization_config: ArrowQuantLanguageConfig

    def __init__(self, quantization_config: ArrowQuantLanguageConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._decoded: list[str] = []

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: object
    ) -> Any:
        self.make_ready(model, checkpoint_files or [])
        _prepare_tying(model, self._decoded)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:
        finish(model, self.quantization_config.settings)
        if self._decoded:
            self.quantization_config = self.quantization_config.without(self._decoded)
            model.config.quantization_config = self.quantization_config
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """`save_pretrained` writes the codes.

        Raises
        ------
        ConfigurationError
            As a pickle, which transformers before version 5 would write.

        """
        if safe_serialization is False:
            raise ConfigurationError(NO_PICKLE)
        return True

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        restore_floats(model, dtype)
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        return model


def _prepare_tying(model: Any, decoded: list[str]) -> None:
    """Have the next `tie_weights` of a model deal with codes first, and note the names of what was decoded.

    transformers ties weights before it lets us finish, and ties parameters only: what no quantized layer holds is
    decoded, and a layer that is tied to a quantized one gets its codes.
    """

    def tie_weights(missing_keys: set[str] | None = None, **options: Any) -> Any:
        del model.tie_weights  # the class's own is back
        decoded.extend(decode_rest(model))
        _share_codes(model, missing_keys)
        return model.tie_weights(missing_keys=missing_keys, **options)

    model.tie_weights = tie_weights


def _share_codes(model: Any, missing_keys: set[str] | None) -> None:
    layers = {f"{path}.weight": layer for path, layer in quantized_layers(model).items()}
    for name, layer in layers.items():
        for other in tied_names(model, name):
            path = other.rpartition(".")[0]
            replace_module(model, path, layer_over(layer.weight, model.get_submodule(path), name, layer.inputs))
            if missing_keys is not None:
                missing_keys.discard(other)
    pairs = model.all_tied_weights_keys
    model.all_tied_weights_keys = {t: s for t, s in pairs.items() if t not in layers and s not in layers}


def register() -> None:
    """Make our method known to transformers; doing so again changes nothing."""
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = ArrowQuantLanguageQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = ArrowQuantLanguageConfig


def attach(model: Any, folder: QuantizedModel) -> None:
    """Let a model whose layers come from a model folder be saved like one that was loaded."""
    config = ArrowQuantLanguageConfig.held_by(model, folder)
    model.hf_quantizer = ArrowQuantLanguageQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.config.quantization_config = config
    offload_codes(model)
