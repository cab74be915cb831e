"""The quantization method of transformers that loads and saves our folders: text encoders, masked language models."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from arrowquant_nb.diffusers.folder_config import FolderConfig
from arrowquant_nb.diffusers.skeleton import check_model, decode_rest, finish, headers, make_room
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.export.folder_settings import QUANT_METHOD, FolderSettings

__all__ = ["ArrowQuantLanguageConfig", "ArrowQuantLanguageQuantizer", "attach", "register"]


class ArrowQuantLanguageConfig(FolderConfig, QuantizationConfigMixin):
    """`quantization_config` of a model of transformers."""


class ArrowQuantLanguageQuantizer(HfQuantizer):
    """Loads packed codes into quantized layers, and saves them as they are."""

    quantization_config: ArrowQuantLanguageConfig

    def __init__(self, quantization_config: ArrowQuantLanguageConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._decoded: list[str] = []

    def validate_environment(self, *_: object, **__: object) -> None:
        """Refuse to quantize while loading: that takes the master copy and its calibration."""
        if not self.pre_quantized:
            raise ConfigurationError(
                "from_pretrained loads our quantized folders; to quantize a float model, load it and call "
                "arrowquant_nb.diffusers.quantize_pipeline"
            )

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: object
    ) -> Any:
        settings = self.quantization_config.settings
        check_model(model, settings, headers(checkpoint_files or [], settings))
        make_room(model, settings)
        _decode_before_tying(model, self._decoded)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:
        finish(model)
        if self._decoded:
            self.quantization_config = self.quantization_config.without(self._decoded)
            model.config.quantization_config = self.quantization_config
        return model

    def is_serializable(self) -> bool:
        """`save_pretrained` writes the codes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes are not trained."""
        return False


def _decode_before_tying(model: Any, decoded: list[str]) -> None:
    """Have the next `tie_weights` of a model decode first what no quantized layer holds, and note the names.

    transformers ties weights before it lets us finish, and ties parameters only.
    """

    def tie_weights(*args: Any, **kwargs: Any) -> Any:
        del model.tie_weights  # the class's own is back
        decoded.extend(decode_rest(model))
        return model.tie_weights(*args, **kwargs)

    model.tie_weights = tie_weights


def register() -> None:
    """Make our method known to transformers; doing so again changes nothing."""
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = ArrowQuantLanguageQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = ArrowQuantLanguageConfig


def attach(model: Any, settings: FolderSettings) -> None:
    """Let a model that was quantized in place be saved like one that was loaded."""
    config = ArrowQuantLanguageConfig(settings).held_by(model)
    model.hf_quantizer = ArrowQuantLanguageQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.config.quantization_config = config
