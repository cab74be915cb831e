"""A small capture of layer inputs along a model's own trajectories, as plain arrays."""

import numpy as np


def capture(model, layers, n=4, n_rows=32, seed=0):
    """Return {layer: (times (T,), channel_min (T, C), channel_max (T, C), rows (T, R, C))}, steps in sampling order."""
    rng = np.random.default_rng(seed)
    found = {layer: [] for layer in layers}

    def hook(name, x, time):
        if name in found:
            flat = x.reshape(-1, x.shape[-1])
            chosen = rng.choice(len(flat), n_rows, replace=False)
            found[name].append((time, flat.min(0), flat.max(0), flat[np.sort(chosen)]))
        return model.linear(name, x, time)

    for step in model.trajectories(n, seed):
        model.forward(step, hook)
    return {layer: tuple(map(np.array, zip(*steps, strict=True))) for layer, steps in found.items()}
