"""What a model makes before and after: images, spectrograms with their sound, or texts, from the same noise.

Runs the bundled samples, for which the package has the code. Knows how they are drawn, not where the pictures go.
"""

import base64
import io
import wave
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from arrowquant_nb import samples
from arrowquant_nb.api import quantized_sample
from arrowquant_nb.samples import spectrogram
from arrowquant_nb.samples.divergences import sample_psnr_db
from arrowquant_nb.storage.quantized import QuantizedModel
from arrowquant_nb.tables import decibels
from arrowquant_nb.ui.sample_grid import sample_grid_svg
from arrowquant_nb.ui.text_pair import text_table

__all__ = ["SamplePair", "draw_pair"]

ORIGINAL: Final = "original"
_PLAYERS: Final = 2


@dataclass(frozen=True, eq=False)
class SamplePair:
    """Samples of the original and of the quantized model; row k of both began from the same noise."""

    modality: str
    label: str
    """Of the quantized one, such as "INT4, 1.4 MB"."""
    original: NDArray[np.generic]
    """(n, height, width) in [-1, 1], log-spectra, or (n, length) character ids."""
    quantized: NDArray[np.generic]

    def html(self) -> str:
        """Return pictures, players or a table; reads without scripts."""
        rows = {ORIGINAL: self.original, self.label: self.quantized}
        if self.modality in ("text", "code"):
            pairs = zip(self.original, self.quantized, strict=True)
            return text_table((ORIGINAL, self.label), ((_characters(a), _characters(b)) for a, b in pairs))
        under = [decibels(value) for value in self.psnr_db]
        if self.modality != "audio":
            return sample_grid_svg(rows, captions=("PSNR", under))
        upright = {label: spectra[:, ::-1] for label, spectra in rows.items()}
        return sample_grid_svg(upright, captions=("PSNR", under)) + self._players()

    @property
    def psnr_db(self) -> tuple[float, ...]:
        """Peak signal-to-noise ratio in dB of each picture or spectrogram; infinite where the two are the same."""
        pairs = zip(self.original[:, None], self.quantized[:, None], strict=True)
        return tuple(sample_psnr_db(a.astype(np.float32), b.astype(np.float32)) for a, b in pairs)

    def _players(self) -> str:
        """Return the first sounds, to be played."""
        parts = []
        for k in range(min(_PLAYERS, len(self.original))):
            for label, spectra in ((ORIGINAL, self.original), (self.label, self.quantized)):
                sound = _wav(spectra[k].astype(np.float64))
                caption = f"<figcaption>{escape(label)}, sound {k + 1}</figcaption>"
                parts.append(f'<figure>{caption}<audio controls src="data:audio/wav;base64,{sound}"></audio></figure>')
        return "".join(parts)


def draw_pair(name: str, model: QuantizedModel, label: str, n: int = 8, seed: int = 0) -> SamplePair:
    """Draw `n` samples from the bundled model `name` and from its quantized form.

    Raises
    ------
    LookupError, ShapeMismatchError
        No such sample, or `model` has other tensors.
    """
    with threadpool_limits(1, user_api="blas"):  # small matrices: several threads only wait for each other
        original = samples.runnable(name).sample(n, seed)
        quantized = quantized_sample(name, model).sample(n, seed)
    return SamplePair(samples.modality(name), label, original, quantized)


def _characters(ids: NDArray[np.generic]) -> list[str]:
    return [samples.decode(np.asarray([i])) for i in ids.ravel().tolist()]


def _wav(log_spectra: NDArray[np.float64]) -> str:
    sound = spectrogram.griffin_lim(log_spectra)
    peak = max(float(np.abs(sound).max()), 1e-9)
    samples_16 = np.rint(sound / peak * 30000).astype("<i2")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(spectrogram.SAMPLE_RATE)
        file.writeframes(samples_16.tobytes())
    return base64.b64encode(stream.getvalue()).decode("ascii")
