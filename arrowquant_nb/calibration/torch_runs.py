"""What is run to calibrate a torch model: a pipeline on prompts, a model on calls, a language model on masked texts.

Each becomes `Runs`: functions that call the model, divided into those that build the statistics and those held out.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np

from arrowquant_nb.calibration.inputs import FIT, HELD_OUT
from arrowquant_nb.calibration.records import joined_steps
from arrowquant_nb.calibration.torch_capture import Runs
from arrowquant_nb.calibration.torch_layers import torch_module
from arrowquant_nb.errors import ConfigurationError, MetadataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.calibration.call_time import CallTime
    from arrowquant_nb.calibration.statistics import CalibrationSettings

DENOISERS: Final = ("transformer", "unet", "prior", "decoder")
"""What diffusers pipelines call the model that denoises."""
MAX_HELD_OUT: Final = 32
SUBJECTS: Final = ("prompt", "class_labels")
"""Arguments of which a pipeline needs one (or one made from it, such as `prompt_embeds`)."""

T = TypeVar("T")


def is_pipeline(model: Any) -> bool:
    """Tell whether something is a diffusers pipeline rather than a torch module."""
    return isinstance(getattr(model, "components", None), dict) and callable(model)


def component_of(pipeline: Any, name: str | None) -> Any:
    """Return a pipeline's component; None is the one that denoises.

    Raises
    ------
    ConfigurationError
        There is no such component.

    """
    nn = torch_module().nn
    modules = {k: m for k, m in pipeline.components.items() if isinstance(m, nn.Module)}
    wanted = next((d for d in DENOISERS if d in modules), "") if name is None else name
    if wanted not in modules:
        raise ConfigurationError(
            f"{type(pipeline).__name__} has no component {name or 'that denoises'}; name one of {', '.join(modules)}"
        )
    return modules[wanted]


def n_held_out(n: int) -> int:
    """Return how many of `n` inputs are held out: a quarter, one at least where there are two, 32 at most."""
    return max(1, min(MAX_HELD_OUT, n // 4)) if n > 1 else 0


def listed(inputs: Any) -> list[Any]:
    """Return inputs as a list: of one text, its ids, one number or dict; of a call without arguments for None."""
    if inputs is None:
        return [{}]
    if isinstance(inputs, (str, int, dict)) or getattr(inputs, "ndim", 0) == 1:
        return [inputs]
    entries = list(inputs)
    if not entries:
        raise ConfigurationError("calibration: the list of inputs is empty")
    return entries


def pipeline_runs(
    pipeline: Any, inputs: Sequence[Any], steps: int, settings: CalibrationSettings, options: Mapping[str, Any]
) -> Runs:
    """Return runs of a pipeline: one call of it for each trajectory, from a seed of its own.

    Parameters
    ----------
    pipeline, steps
        What is called, and with how many steps.
    inputs
        Prompts, class labels, or dicts of arguments of the pipeline, one for each trajectory; fewer are used in turn.
        Of several, the last quarter is held out.
    settings
        How many trajectories; the seed.
    options
        Further arguments of every call.

    """
    parts = _divided([_arguments(pipeline, entry) for entry in inputs])

    def run(which: int, number: int) -> None:
        seed = int(np.random.SeedSequence([settings.seed, which, number]).generate_state(1)[0])
        entry = parts[which][number % len(parts[which])]
        pipeline_call(pipeline, entry, steps, seed, {"output_type": "latent", **options})

    return Runs(
        [functools.partial(run, FIT, i) for i in range(settings.n_samples)],
        [functools.partial(run, HELD_OUT, i) for i in range(settings.n_held_out)],
    )


def pipeline_call(pipeline: Any, entry: Any, steps: int, seed: int, options: Mapping[str, Any]) -> Any:
    """Call a pipeline on a prompt, a class or a dict of its arguments, and return what it returns.

    Parameters
    ----------
    pipeline, entry, steps
        What is called, on what, with how many steps.
    seed
        Of the starting noise.
    options
        Further arguments; those of the entry win. An `output_type` is left out where the pipeline has none.

    Raises
    ------
    ConfigurationError
        The pipeline needs a prompt or a class, and has none.

    """
    parameters = inspect.signature(pipeline.__call__).parameters
    found = {"num_inference_steps": steps, "generator": torch_module().Generator("cpu").manual_seed(seed)}
    known = {k: v for k, v in (found | {"output_type": options.get("output_type", "np")}).items() if k in parameters}
    rest = {k: v for k, v in options.items() if k != "output_type"}
    given = {**rest, **_arguments(pipeline, entry)}
    subject = next((name for name in SUBJECTS if name in parameters), None)
    if subject is not None and not any(name.startswith(subject) for name in given):
        raise ConfigurationError(
            f"{type(pipeline).__name__} draws what its {subject} says, and none is given: "
            "give prompts or classes, on the command line by --prompts FILE with one a line"
        )
    return pipeline(**{**known, **given})


def loop_runs(loop: Callable[[int], object], settings: CalibrationSettings) -> Runs:
    """Return runs of the user's own sampling loop: called with 0, 1, 2, ..., of which the last ones are held out."""
    n = settings.n_samples
    return Runs(
        [functools.partial(loop, i) for i in range(n)],
        [functools.partial(loop, n + i) for i in range(settings.n_held_out)],
    )


def call_runs(model: Any, calls: Sequence[Mapping[str, Any]], settings: CalibrationSettings, time: CallTime) -> Runs:
    """Return runs of a model on given calls, dicts of its arguments; each is at one timestep.

    Timesteps are joined to at most `n_steps` neighbouring ones with two calls or more each. Of each a seeded quarter
    (32 at most) is held out.

    Raises
    ------
    MetadataError
        A call has several timesteps, or there is only one call.

    """
    timed = [_TimedCall(_one_time(time, number, call), call) for number, call in enumerate(calls)]
    fit: list[Mapping[str, Any]] = []
    held_out: list[Mapping[str, Any]] = []
    recorded: dict[int, int] = {}
    for number, joined in enumerate(joined_steps("the calls", timed, settings.n_steps)):
        recorded |= {call.time: max(c.time for c in joined) for call in joined}
        order = np.random.default_rng([settings.seed, number]).permutation(len(joined))
        n = n_held_out(len(joined))
        held_out += [joined[i].call for i in order[:n]]
        fit += [joined[i].call for i in order[n:][: settings.n_samples]]
    return Runs(
        [functools.partial(_called, model, call) for call in fit],
        [functools.partial(_called, model, call) for call in held_out],
        recorded,
    )


def masked_runs(
    model: Any, texts: Sequence[NDArray[np.int64]], mask_token_id: int, steps: int, settings: CalibrationSettings
) -> Runs:
    """Return runs of a masked language model on texts that are masked ever less.

    The shares of masked tokens are the midpoints of `steps` equal parts of [0, 1], largest first, as a sampler that
    unmasks in an order of its own sees them (Nie et al. 2025). Of several texts the last quarter is held out.

    Parameters
    ----------
    model, mask_token_id
        A model that is called with `input_ids`.
    texts
        Token ids (n,) of each text; equally long ones share a batch.
    steps, settings
        Number of shares; batch size, seed.

    Raises
    ------
    ConfigurationError
        A text is masked already.

    """
    marked = next((number for number, text in enumerate(texts) if (text == mask_token_id).any()), None)
    if marked is not None:
        raise ConfigurationError(
            f"calibration: text {marked} holds the mask token {mask_token_id}; give whole texts, they are masked here"
        )
    parts = _divided(list(texts))

    def run(which: int, number: int, batch: NDArray[np.int64]) -> None:
        order = np.random.default_rng([settings.seed, which, number]).random(batch.shape).argsort(-1).argsort(-1)
        for i in range(steps):
            share = 1 - (i + 0.5) / steps
            masked = order < max(1, round(share * batch.shape[1]))
            ids = torch_module().from_numpy(np.where(masked, mask_token_id, batch))
            model(input_ids=ids.to(next(model.parameters()).device))

    runs = [
        [functools.partial(run, which, i, b) for i, b in enumerate(_batches(parts[which], settings.batch_samples))]
        for which in (FIT, HELD_OUT)
    ]
    return Runs(runs[FIT], runs[HELD_OUT])


def token_ids(inputs: Sequence[Any], tokenizer: Any) -> list[NDArray[np.int64]]:
    """Return the token ids of texts, or of arrays of ids (n, tokens) or (tokens,).

    Raises
    ------
    ConfigurationError
        Texts without a tokenizer, or ids that are no integers.

    """
    found: list[NDArray[np.int64]] = []
    for entry in inputs:
        if isinstance(entry, str):
            if tokenizer is None:
                raise ConfigurationError("calibration: texts need the model's tokenizer; give tokenizer=...")
            entry = tokenizer(entry)["input_ids"]  # noqa: PLW2901 - the same text as ids
        ids = np.asarray(entry.cpu() if hasattr(entry, "cpu") else entry)
        if ids.dtype.kind not in "iu" or not ids.size or ids.ndim > 2:
            raise ConfigurationError(
                f"calibration: token ids must be integers (n, tokens), got {ids.dtype} {ids.shape}"
            )
        found += list(np.atleast_2d(ids).astype(np.int64))
    return found


class _TimedCall(NamedTuple):
    """A call and its timestep."""

    time: int
    call: Mapping[str, Any]


def _one_time(time: CallTime, number: int, call: Mapping[str, Any]) -> int:
    try:
        times, _ = time.read((), call)
    except TypeError as error:
        raise MetadataError(f"calibration: call {number} does not fit the model's forward: {error}") from error
    if len(times) > 1:
        raise MetadataError(f"calibration: call {number} has {len(times)} timesteps; give one call for each timestep")
    return int(times[0])


def _called(model: Any, call: Mapping[str, Any]) -> object:
    return model(**call)


def _divided(entries: list[T]) -> tuple[list[T], list[T]]:
    """Return the entries that build the statistics and those held out; a single one is both, with other noise."""
    n = n_held_out(len(entries))
    return entries[: len(entries) - n], entries[len(entries) - n :] if n else entries


def _arguments(pipeline: Any, entry: Any) -> dict[str, Any]:
    """Return one entry as arguments of the pipeline: a text is a prompt, a number a class."""
    parameters = inspect.signature(pipeline.__call__).parameters
    if isinstance(entry, dict):
        unknown = sorted(set(entry) - set(parameters))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ConfigurationError(
                f"{type(pipeline).__name__} takes no {', '.join(unknown)}; it takes {', '.join(parameters)}"
            )
        return entry
    name = "prompt" if isinstance(entry, str) else "class_labels"
    if name not in parameters or not isinstance(entry, (str, int, np.integer)):
        raise ConfigurationError(
            f"{type(pipeline).__name__} takes no {name} such as {entry!r:.80}; give dicts of its arguments: "
            f"{', '.join(parameters)}"
        )
    return {name: entry if name == "prompt" else [int(entry)]}


def _batches(texts: list[NDArray[np.int64]], size: int) -> list[NDArray[np.int64]]:
    """Stack texts of the same length, at most `size` together, in the order of first appearance."""
    by_length: dict[int, list[NDArray[np.int64]]] = {}
    for text in texts:
        by_length.setdefault(len(text), []).append(text)
    return [np.stack(same[i : i + size]) for same in by_length.values() for i in range(0, len(same), size)]
