"""A small model that runs: shared inputs, a convolution, a layer that sees the timestep only, a class per sample."""

import numpy as np

from arrowquant_nb.calibration.statistics import CalibrationSettings
from arrowquant_nb.samples.runnable import Step

TIMES = (999, 799, 599, 399, 199)
WIDTH = 6
SHAPES = {
    "patch.weight": (WIDTH, 1, 2, 2),
    "q.weight": (5, WIDTH),
    "k.weight": (5, WIDTH),
    "time.weight": (WIDTH, 3),
    "out.weight": (4, WIDTH),
}


class Tiny:
    """Implements `RunnableModel` and remembers what it was asked."""

    def __init__(self, seed=0, times=TIMES):
        rng = np.random.default_rng(seed)
        self.weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
        self.times = times
        self.asked = []

    def layers(self):
        return dict(SHAPES)

    def linear(self, name, x, time):
        weight = self.weights[name]
        return x @ weight.reshape(len(weight), -1).T

    def trajectories(self, n, seed):
        self.asked.append((n, seed))
        x = np.random.default_rng(seed).standard_normal((n, 4, 4), dtype=np.float32)
        for time in self.times:
            labels = np.concatenate([np.arange(n) % 3, np.full(n, 3)])
            yield Step({"hidden_states": np.concatenate([x, x]), "class_labels": labels}, time)
            x = np.float32(0.8) * x

    def forward(self, step, linear=None):
        hook = linear or self.linear
        time = step.time
        x = step.inputs["hidden_states"].reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 4, 4)
        labels = np.array([0.0, 0.1, 0.2, -0.5], np.float32)[step.inputs["class_labels"]]
        hidden = hook("patch.weight", x, time) + labels[:, None, None]
        mixed = hook("q.weight", hidden, time) * hook("k.weight", hidden, time)
        features = np.array([[1.0, time / 1000, (time / 1000) ** 2]], np.float32)
        shift = hook("time.weight", features, time)
        return hook("out.weight", np.tanh(hidden * 3 + mixed.mean(-1, keepdims=True)) + shift, time)


def inputs_of(model, steps):
    """Input rows of every layer for every step, seen by a plain hook: {(name, time): rows}."""
    seen = {}

    def hook(name, x, time):
        seen.setdefault((name, time), []).append(np.array(x).reshape(-1, x.shape[-1]))
        return model.linear(name, x, time)

    for step in steps:
        model.forward(step, hook)
    return {key: np.concatenate(rows) for key, rows in seen.items()}


SETTINGS = CalibrationSettings(n_samples=7, rows_per_step=5, held_out_rows_per_step=3, batch_samples=4)
