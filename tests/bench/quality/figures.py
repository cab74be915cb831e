"""Figures of a decoded matrix against its original, and the heavy-tailed matrix that they are taken on."""

import numpy as np

SIZE = 3072
TOKENS = 256


def heavy_tailed(rows: int = SIZE, columns: int = SIZE) -> np.ndarray:
    """Student t5 times lognormal(0, 0.3) per row, 0.1 % of the columns times 8; float32."""
    rng = np.random.default_rng(0)
    weight = rng.standard_t(5, (rows, columns)) * rng.lognormal(0, 0.3, (rows, 1))
    weight[:, rng.choice(columns, max(1, columns // 1000), replace=False)] *= 8
    return weight.astype(np.float32)


def tokens(columns: int = SIZE) -> np.ndarray:
    """Inputs for the output error: normal times lognormal(0, 1) per channel, 0.5 % of the channels times 10."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((TOKENS, columns)) * rng.lognormal(0, 1, columns)
    x[:, rng.choice(columns, columns // 200, replace=False)] *= 10
    return x.astype(np.float32)


def relative_error(weight: np.ndarray, decoded: np.ndarray) -> float:
    """Norm of the difference over the norm of the original."""
    return float(np.linalg.norm((decoded - weight).astype(np.float64)) / np.linalg.norm(weight.astype(np.float64)))


def output_error(weight: np.ndarray, decoded: np.ndarray, x: np.ndarray) -> float:
    """Return the same of the product with `x`."""
    return relative_error(x @ weight.T, x @ decoded.T)
