"""The network's output with everything that was stored, measured on trajectories that no Hessian has seen.

Reads the committed files of a run before its manifest exists, so that the figure can stand in it. Weights only: what
rounding activations costs is for whoever runs the model with them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowquant_nb.costs import sqnr_db
from arrowquant_nb.network_quality import NetworkQuality
from arrowquant_nb.quantizers.blas import single_threaded_blas
from arrowquant_nb.samples.probe import Probe
from arrowquant_nb.samples.runnable import EVALUATION
from arrowquant_nb.storage.manifest import Manifest
from arrowquant_nb.storage.output import ModelFolder, data_file_name
from arrowquant_nb.storage.quantized import QuantizedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.samples import Sample

GATE_TRAJECTORIES: Final = 8
GATE_STEPS: Final = 8
ROUNDS: Final = 3
"""Layers that are promoted at most."""


class NetworkGate:
    """A float model's output, to hold stored weights against."""

    def __init__(self, model: Sample, config: DiffusionQuantConfig) -> None:
        self._config = config
        with single_threaded_blas():
            self._probe = Probe.of(model, GATE_TRAJECTORIES, config.seed, GATE_STEPS, EVALUATION)

    def measure(
        self,
        folder: ModelFolder,
        tasks: Sequence[LayerTask],
        reports: Sequence[LayerReport],
        predicted_noise: float | None,
    ) -> NetworkQuality:
        """Measure the committed layers of a run, in order."""
        weights = _stored_weights(folder, tasks, reports, self._config, self._probe)
        with single_threaded_blas():
            noise = self._probe.noise(weights)
        found, least = sqnr_db(noise), self._config.min_network_sqnr_db
        facts: dict[str, Any] = {}
        if predicted_noise is not None:
            facts["predicted_db"] = sqnr_db(predicted_noise)
            facts["additivity"] = noise / predicted_noise if predicted_noise > 0.0 else math.inf if noise else 1.0
        return NetworkQuality(
            found, self._probe.n, len(self._probe.steps), self._probe.seed, least, least is None or found >= least,
            **facts,
        )  # fmt: skip


def _stored_weights(
    folder: ModelFolder,
    tasks: Sequence[LayerTask],
    reports: Sequence[LayerReport],
    config: DiffusionQuantConfig,
    probe: Probe,
) -> dict[str, NDArray[np.float32]]:
    """Return the quantized weights as a reader will see them; kept ones are the float model's own."""
    tensors: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, Any]] = {}
    for task, report in zip(tasks, reports, strict=True):
        if report.action != "quantized" or task.name not in probe.model.weights:
            continue
        commit = folder.committed(data_file_name(task.index, task.name))
        files[commit.file] = {"nbytes": commit.nbytes, "xxh3": commit.xxh3}
        tensors[task.name] = commit.tensors[task.name]
    facts = {"config": config.to_dict(), "modality": ""}
    with QuantizedModel(folder.folder, Manifest(facts, tensors, files), "off") as model:
        return {
            name: np.asarray(model[name].dequantize("float32")).reshape(probe.model.weights[name].shape)
            for name in model
        }
