"""Quantizers: weights in, packed codes and measured error out. Knows nothing of files or models."""

from arrowquant_nb.quantizers.affine import MatrixJob, quantize_array, quantize_matrices
from arrowquant_nb.quantizers.layout import Layout
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor
from arrowquant_nb.quantizers.transforms import quantize_compensated, quantize_transformed

__all__ = [
    "LayerStatistics",
    "Layout",
    "MatrixJob",
    "QuantizedTensor",
    "quantize_array",
    "quantize_compensated",
    "quantize_matrices",
    "quantize_transformed",
]
