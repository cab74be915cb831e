"""Quantized folders into torch models: layers are swapped, and the library of a model learns how to save them.

Joins the runtime, which knows torch alone, with the backend of diffusers and transformers.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from arrowquant_nb.runtime import load_into
from arrowquant_nb.storage.quantized import open_privately

if TYPE_CHECKING:
    from pathlib import Path

    from arrowquant_nb.storage.model_files import Verify
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["load_quantized"]

SAVING_CLASSES: Final = (("diffusers", "ModelMixin"), ("transformers", "PreTrainedModel"))
"""Library and name of the classes whose `save_pretrained` must be told what a quantized layer is."""
_log = logging.getLogger("arrowquant_nb")


def load_quantized(
    model: Any,
    path: str | Path,
    *,
    inputs: str | None = None,
    verify: Verify = "lazy",
    n_timesteps: float | None = None,
    mask_token_id: int | None = None,
) -> Any:
    """Load a quantized model folder into a torch model of its class.

    Parameters
    ----------
    model
        A torch module with the tensors of the folder: built from its config, with any weights, or on the meta device.
        Linear layers, convolutions and tables of embeddings whose weight is quantized are replaced, other tensors are
        set; dtypes stay those of the model.
    path
        A finished model folder.
    inputs
        How the replaced layers round their inputs: None = as the folder was made, "float" = not at all, "per_token",
        "per_group" (per token and group of 64 channels), or "static" (grids per group of timesteps, from the folder).
        Layers that see only the timestep and the class stay float, and where the folder rounds some inputs, those
        that it leaves float (layers under 16,384 weights).
    verify
        "lazy" checks every file's hash, "off" none.
    n_timesteps
        Training timesteps that `model.forward` counts, see `follow_time`.
    mask_token_id
        Of a masked language model, whose time is the share of masked tokens.

    Returns
    -------
    module
        The model, in evaluation mode; its `forward` now notes the timestep where any layer needs it. The
        `save_pretrained` of a model of diffusers or transformers writes the codes.

    Raises
    ------
    ShapeMismatchError
        Layers that are missing in the folder or in the model, or of another shape: it is another model's folder.
    ModelNotFoundError, ValidationError, MetadataError
        No folder, a damaged one, or one of a newer version; inputs "static" without tables.
    CheckpointError
        A kept value that overflows the dtype of the model.
    ConfigurationError
        Something else than a torch module, or one whose layers are quantized already.

    Notes
    -----
    On the processor a quantized linear layer multiplies by its codes as exactly under `torch.autocast` as without, and
    answers in the dtype of its input where torch's own answers in the lower one; layers whose weight is decoded for the
    call (on other devices, convolutions, and where gradients are recorded) are cast like torch's.

    Examples
    --------
    >>> import arrowquant_nb as aq
    >>> from diffusers import DiTTransformer2DModel  # doctest: +SKIP
    >>> model = DiTTransformer2DModel.from_config(DiTTransformer2DModel.load_config("digits-int4"))  # doctest: +SKIP
    >>> aq.load_quantized(model, "digits-int4")  # doctest: +SKIP

    """
    with open_privately(path, verify) as folder:
        load_into(model, folder, inputs=inputs, n_timesteps=n_timesteps, mask_token_id=mask_token_id)
        _let_save(model, folder)
    return model


def _let_save(model: Any, folder: QuantizedModel) -> None:
    """Tell the model's library of its quantized layers, where it has one."""
    classes = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__}
    if classes.isdisjoint(SAVING_CLASSES):
        return
    missing = [name for name in ("diffusers", "transformers", "accelerate") if find_spec(name) is None]
    if missing:
        _log.warning(
            "%s.save_pretrained cannot write quantized layers without %s: pip install 'arrowquant_nb[diffusers]'",
            type(model).__name__,
            ", ".join(missing),
        )
        return
    from arrowquant_nb.diffusers.saving import let_save  # noqa: PLC0415 - optional, and loads both libraries

    let_save(model, folder)
