"""The deterministic DDIM sampler (Song et al. 2021) for v-prediction on a cosine schedule, as diffusers configures it.

It reads a `scheduler_config.json` and refuses settings that it does not implement. It knows nothing of networks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

REQUIRED = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
    "set_alpha_to_one": True,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
}
MAX_BETA = 0.999
"""Cap of the cosine schedule's betas (Nichol and Dhariwal 2021, section 3.2)."""


def cosine_alphas_cumprod(n_timesteps: int) -> NDArray[np.float64]:
    """Return the signal power left at each timestep, float64 (n_timesteps,), of the cosine schedule."""

    def power(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - power((i + 1) / n_timesteps) / power(i / n_timesteps), MAX_BETA) for i in range(n_timesteps)]
    return np.cumprod(1 - np.array(betas))


@dataclass(frozen=True, eq=False)
class DDIM:
    """A sampler built from one scheduler config."""

    alphas_cumprod: NDArray[np.float64]
    """Signal power per training timestep, (n_timesteps,)."""
    clip_range: float
    """The predicted clean sample is clipped to +- this."""

    @classmethod
    def from_file(cls, path: Path) -> DDIM:
        """Read a `scheduler_config.json`.

        Raises
        ------
        ValueError
            A setting asks for something other than what is implemented here; the message names it.

        """
        config = json.loads(path.read_text(encoding="utf-8"))
        for field, value in REQUIRED.items():
            if config.get(field) != value:
                raise ValueError(f"{path}: {field} is {config.get(field)!r}; this sampler implements {value!r} only")
        return cls(cosine_alphas_cumprod(config["num_train_timesteps"]), config["clip_sample_range"])

    def timesteps(self, steps: int) -> list[int]:
        """Return the training timesteps that `steps` sampling steps visit, noisiest first ("trailing" spacing).

        Raises
        ------
        ValueError
            `steps` is below 1 or above the number of training timesteps.

        """
        n = len(self.alphas_cumprod)
        if not 1 <= steps <= n:
            raise ValueError(f"steps is {steps}; it must lie in 1..{n}, the number of training timesteps")
        return [int(t) - 1 for t in np.round(np.arange(n, 0, -n / steps))]

    def step(self, v: NDArray[np.float32], time: int, x: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
        """Go one step towards the clean sample.

        Parameters
        ----------
        v
            The network's (guided) v-prediction at `x`, float32.
        time
            Training timestep of `x`.
        x
            The noisy sample, same shape.
        steps
            Number of sampling steps in all; the next timestep lies ``n_timesteps // steps`` below.

        Returns
        -------
        NDArray[np.float32]
            The sample at the next timestep; the last step returns the clean one, inside +- `clip_range`.

        """
        n = len(self.alphas_cumprod)
        following = time - n // steps
        signal = self.alphas_cumprod[time]
        next_signal = self.alphas_cumprod[following] if following >= 0 else 1.0
        root, noise_root = math.sqrt(signal), math.sqrt(1 - signal)
        clean = np.clip(root * x - noise_root * v, -self.clip_range, self.clip_range)
        noise = root * v + noise_root * x
        following_x = math.sqrt(next_signal) * clean + math.sqrt(1 - next_signal) * noise
        return following_x.astype(np.float32, copy=False)
