"""Calibrate a torch model or a diffusers pipeline along its own sampling loop, into a file that a run takes.

Joins the policy, which says what will be quantized, with the capture, which records it. torch is loaded on first use.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from arrowquant_nb.calibration import torch_runs
from arrowquant_nb.calibration.call_time import CallTime
from arrowquant_nb.calibration.capture_file import write_calibration
from arrowquant_nb.calibration.channel_groups import MOST_GROUPS
from arrowquant_nb.calibration.scratch import Scratch
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings
from arrowquant_nb.calibration.torch_capture import TorchCapture
from arrowquant_nb.calibration.torch_layers import (
    checkpoint_tensors,
    holds_codes,
    torch_layers,
    torch_model_hash,
    torch_module,
)
from arrowquant_nb.config import given_or_default
from arrowquant_nb.errors import ConfigurationError, OutputError
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH
from arrowquant_nb.storage.policy import assign_bit_widths
from arrowquant_nb.storage.safetensors_file import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from arrowquant_nb.calibration.torch_capture import Runs
    from arrowquant_nb.calibration.torch_layers import TorchLayer
    from arrowquant_nb.config import DiffusionQuantConfig

    _Layers = dict[str, tuple[TorchLayer, ...]]

TRAIN_TIMESTEPS: Final = 1000
LOOPS: Final = 4
"""Trajectories of a sampling loop that the user gives, unless said otherwise."""
SUFFIX: Final = ".parquet"


def calibrate(
    model: Any,
    inputs: Any = None,
    steps: int = 25,
    *,
    output: str | Path,
    config: DiffusionQuantConfig | None = None,
    layers: Collection[str] | None = None,
    component: str | None = None,
    n_samples: int | None = None,
    seed: int = 0,
    rows_per_step: int = 64,
    memory_mb: float = 2048,
    tokenizer: Any = None,
    mask_token_id: int | None = None,
    n_timesteps: int | None = None,
    time_range: tuple[float, float] | None = None,
    share_inputs: bool = True,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Calibration:
    """Run a model along its own sampling loop, record what its layers are given, and write that to a file.

    Parameters
    ----------
    model : a diffusers pipeline, or a torch module: a denoiser, or a masked language model of transformers.
    inputs : what is run, by kind of model.
        Pipeline: prompts, class labels, or dicts of its arguments, one per trajectory; of several, the last quarter
        is held out. Denoiser: dicts of the arguments of `forward`, one per call, timestep included. Language model:
        texts (with `tokenizer`) or token ids (n, tokens), which are masked at `steps` shares. Any of them: a function
        that runs your own sampling loop once and is given 0, 1, 2, ...
    steps : sampling steps of a trajectory, shares of masked tokens, or timesteps that given calls are joined to.
    output : file to write, `*.parquet`; give it to `quantize_diffusion_model(..., calibration=FILE)`.
    config : which layers will be quantized; default the local profile.
    layers : weight names to record instead.
    component : of a pipeline, such as "text_encoder"; default the one that denoises.
    n_samples : trajectories; default one for each input that is not held out.
    seed : of noise, masks and kept rows.
    rows_per_step : input rows kept per timestep and layer, and as many held out.
    memory_mb : statistics beyond so many 10^6 bytes lie in an unnamed file in the temporary folder.
    tokenizer, mask_token_id : of a language model; the mask is that of the model's config or tokenizer.
    n_timesteps : training timesteps; default the scheduler's, else 1000.
    time_range : values of the timestep at the clean and the noisy end, where it counts neither 0 to 1 nor 0 to
        `n_timesteps`.
    share_inputs : layers that are given the same rows share their statistics; turn it off where they do so only at
        first.
    options : further arguments of every call of a pipeline, such as height and width.
    progress : called with a fraction that rises to 1.0; an exception in it stops the calibration.

    Returns
    -------
    Calibration
        The statistics by weight name; of a convolution in channel groups those of each, by ``name[0]``, ``name[1]``
        and so on: each group meets rows of the weight of its own, and is quantized by them. `unobserved` names layers
        that the inputs never reached, and convolutions in more than 128 groups, depthwise ones as a rule. A run
        quantizes those data-free and says so; rows under 32 columns, such as depthwise 3x3, it keeps.

    Raises
    ------
    ConfigurationError
        An argument does not fit the model.
    MetadataError
        Inputs are not finite, timesteps are out of range, or trajectories visit different ones.
    OutputError
        The file cannot be written.

    Examples
    --------
    ::

        aq.calibrate(pipe, ["a red fox", "two cups of tea"], steps=20, output="fox.parquet")
    """
    path = checked_output(output)
    module, pipeline = _module_of(model, component)
    config = given_or_default(config)
    n_timesteps = _train_timesteps(pipeline) if n_timesteps is None else n_timesteps
    mask = _mask_token(module, tokenizer, mask_token_id)
    time = CallTime(module.forward, type(module).__name__, n_timesteps, mask, time_range)

    def settings(n_default: int) -> CalibrationSettings:
        return CalibrationSettings(
            n_samples=n_default if n_samples is None else n_samples, seed=seed, rows_per_step=rows_per_step,
            held_out_rows_per_step=rows_per_step, batch_samples=16, n_timesteps=n_timesteps, n_steps=steps,
        )  # fmt: skip

    if callable(inputs):
        chosen = settings(LOOPS)
        runs = torch_runs.loop_runs(inputs, chosen)
    elif pipeline is not None:
        entries = torch_runs.listed(inputs)
        chosen = settings(len(entries) - torch_runs.n_held_out(len(entries)))
        runs = torch_runs.pipeline_runs(pipeline, entries, steps, chosen, options or {})
    else:
        runs, chosen = _module_runs(module, torch_runs.listed(inputs), steps, time, mask, tokenizer, settings)
    wanted, grouped = _without_many_groups(_wanted_layers(module, config, layers, is_text=time.parameter is None))
    capture = TorchCapture(module, wanted, time, chosen, _scratch(memory_mb), share=share_inputs)
    captures, unobserved = capture.run(runs, progress)
    calibration = Calibration(
        captures,
        "capture",
        chosen,
        torch_model_hash(module),
        unobserved=(*unobserved, *grouped),
        time_reading=time.reading,
    )
    write_calibration(path, calibration)
    return calibration


def _module_of(model: Any, component: str | None) -> tuple[Any, Any]:
    """Return the module that is observed and the pipeline it is of, None for a module by itself."""
    if torch_runs.is_pipeline(model):
        return torch_runs.component_of(model, component), model
    if not isinstance(model, torch_module().nn.Module):
        raise ConfigurationError(f"{type(model).__name__} is neither a diffusers pipeline nor a torch module")
    return model, None


def _without_many_groups(wanted: _Layers) -> tuple[_Layers, tuple[str, ...]]:
    """Leave out convolutions in too many channel groups to keep statistics of each; return the rest, and them."""
    grouped = tuple(name for name, same in wanted.items() if max(layer.groups for layer in same) > MOST_GROUPS)
    rest = {name: same for name, same in wanted.items() if name not in grouped}
    if not rest:
        raise ConfigurationError(
            f"calibration: {grouped[0]!r} is a convolution in {wanted[grouped[0]][0].groups} groups, of which at most "
            f"{MOST_GROUPS} are calibrated, and nothing else is wanted: quantize it without calibration"
        )
    return rest, grouped


def _module_runs(
    module: Any,
    entries: list[Any],
    steps: int,
    time: CallTime,
    mask: int | None,
    tokenizer: Any,
    settings: Callable[[int], CalibrationSettings],
) -> tuple[Runs, CalibrationSettings]:
    """Return the runs of a module on given calls or texts, and their settings."""
    if all(isinstance(entry, dict) for entry in entries):
        if time.parameter is None and not time.counts_masks and type(module).__name__.endswith("ForMaskedLM"):
            raise ConfigurationError("calibration: the model's mask token is not known; give mask_token_id=...")
        chosen = settings(len(entries))
        return torch_runs.call_runs(module, entries, chosen, time), chosen
    if time.parameter is not None:
        raise ConfigurationError(
            f"calibration: {type(module).__name__} is called with a {time.parameter}; give dicts of the arguments of "
            "its forward, the pipeline it belongs to, or a function that runs your sampling loop"
        )
    if mask is None:
        raise ConfigurationError("calibration: the model's mask token is not known; give mask_token_id=...")
    texts = torch_runs.token_ids(entries, tokenizer)
    chosen = settings(len(texts))
    return torch_runs.masked_runs(module, texts, mask, steps, chosen), chosen


def _wanted_layers(
    module: Any, config: DiffusionQuantConfig, layers: Collection[str] | None, *, is_text: bool
) -> _Layers:
    """Return the layers that a run with `config` quantizes, or those named."""
    known = torch_layers(module)
    if holds_codes(module):
        raise ConfigurationError(
            f"calibration: {type(module).__name__} is quantized already: load the float model, or call its dequantize()"
        )
    if layers is not None:
        layers = (layers,) if isinstance(layers, str) else layers
        unknown = sorted(set(layers) - set(known))
        if unknown or not layers:
            raise ConfigurationError(
                f"calibration: {', '.join(map(repr, unknown[:5])) or 'an empty list'} names no layer of the model; it "
                f"has {len(known)}, such as {next(iter(known), 'none')!r}"
            )
        return {name: known[name] for name in known if name in layers}
    entries = [
        TensorEntry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), Path(), 0, tensor.nbytes)
        for name, tensor in checkpoint_tensors(module)
    ]
    assigned = assign_bit_widths(entries, type(module).__name__, "text" if is_text else "image", config)
    chosen = {a.name: known[a.name] for a in assigned if a.bit_width != KEPT_BIT_WIDTH and a.name in known}
    if not chosen:
        raise ConfigurationError(
            f"calibration: no layer of {type(module).__name__} would be quantized; give layers=[...], or a config "
            "whose layer_bit_widths quantize some"
        )
    return chosen


def _scratch(memory_mb: float) -> Scratch:
    if not memory_mb >= 0:
        raise ConfigurationError(f"calibration: memory_mb is {memory_mb}; it must not be negative")
    return Scratch(None if memory_mb == float("inf") else int(memory_mb * 1e6))


def _train_timesteps(pipeline: Any) -> int:
    config = getattr(getattr(pipeline, "scheduler", None), "config", None)
    return int(getattr(config, "num_train_timesteps", TRAIN_TIMESTEPS))


def _mask_token(module: Any, tokenizer: Any, given: int | None) -> int | None:
    for holder in (tokenizer, getattr(module, "config", None)):
        if given is None:
            given = getattr(holder, "mask_token_id", None)
    return given


def checked_output(output: str | Path) -> Path:
    """Return where a calibration goes, known before a model has run for an hour.

    Raises
    ------
    ConfigurationError, OutputError
        Its name does not end as it must; nobody may write there, or a folder has its name.
    """
    path = Path(output)
    if path.suffix != SUFFIX:
        raise ConfigurationError(f"calibration: output is {str(output)!r}; its name must end in {SUFFIX}")
    try:
        there = next(folder for folder in path.absolute().parents if folder.exists())
        fits = not path.is_dir() and there.is_dir() and os.access(there, os.W_OK)
    except OSError:  # such as a name that is too long
        fits = False
    if not fits:
        raise OutputError(f"the calibration {path} cannot be written there: choose another folder or name")
    return path
