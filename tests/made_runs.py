"""Results made by hand: a few layers whose figures are known, for what draws or compares runs."""

from arrowquant_nb.layer_reports import AttemptReport, LayerReport
from arrowquant_nb.results import QuantizationResult, Strategy


def layer(name, sqnr_db, bits=4, nbytes=100, output="not_measured", action="quantized"):
    attempt = AttemptReport(bits, "uls", "minimum", 0.99, sqnr_db, 1e-4, 0.98, True, output, "why")
    return LayerReport(
        name=name, shape=(8, 64), dtype="float16", action=action, role="linear", reason="r", rule="bit_width",
        requested_bit_width=bits, bit_width=bits, method="uls", grid="minimum", group_size=64, n_weights=512,
        source_nbytes=1024, nbytes=nbytes, sqnr_db=sqnr_db, cosine=0.99, mse=1e-4, gain=1.0, w_absmax=1.0,
        attempts=(attempt,) if action == "quantized" else (),
    )  # fmt: skip


def run(layers, bits=4, payload=2_000_000, **config):
    return QuantizationResult(
        quantized_path="out", model="m", compression_ratio=3.0, compression_ratio_quantized=3.5, cosine_similarity=0.99,
        sqnr_db=20.0, model_size_mb=1.0, source_size_mb=3.0, payload_nbytes=payload, container_nbytes=1,
        modality="image", modality_reason="said so", strategy=Strategy("gptq", "uls", True, True, "none", "why"),
        bit_width=bits, quantization_time_s=1.0, fallback_rate=0.0, reused=0, layers=tuple(layers),
        config={"deployment_profile": "local", "bit_width": bits, "num_threads": bits} | config,
    )  # fmt: skip


FOUR = run([layer("a", 24.0), layer("b", 26.0), layer("c", 30.0), layer("only", 20.0)])
TWO = run([layer("a", 14.5, 2, 50), layer("b", 27.0), layer("c", 4.4, 2, 50)], 2, 1_260_000, enable_spatial=False)
EIGHT = run([layer("a", 40.0, 8), layer("b", 41.0, 8), layer("c", 42.0, 8)], 8, 3_000_000)
WASTEFUL = run([layer("a", 23.0), layer("b", 23.0), layer("c", 23.0)], 4, 2_500_000)
