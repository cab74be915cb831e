"""What GPTQ takes for one large layer: time, and memory in copies of its Hessian."""

import json
import subprocess
import sys
from collections.abc import Iterator

# A process of its own: its peak is nobody else's.
SCRIPT = """
import json, sys, time
import numpy as np
from arrowquant_nb.quantizers.gptq import gptq_matrix
from arrowquant_nb.quantizers.matrix_job import MatrixJob
size, bits, group, scale_format = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rng = np.random.default_rng(0)
def job(n):
    weight = rng.standard_t(5, (n, n)).astype(np.float32)
    return MatrixJob(weight, "layer", weight.shape, bits, group, "uls", scale_format=scale_format)
def hessian(n):
    x = rng.standard_normal((4096, n), np.float32) * np.linspace(0.2, 2, n, dtype=np.float32)
    x[:, 1:] += 0.5 * x[:, :-1]
    return (x.T @ x).astype(np.float64) / len(x)
gptq_matrix(job(512), hessian(512))
order, moments = job(size), hessian(size)
open("/proc/self/clear_refs", "w").write("5")
status = lambda key: int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) * 1024
start = status("VmRSS")
began, worked = time.perf_counter(), time.process_time()
tensor, report = gptq_matrix(order, moments)
seconds, processor = time.perf_counter() - began, time.process_time() - worked
print(json.dumps({"seconds": seconds, "processor_s": processor, "extra_nbytes": status("VmHWM") - start,
                  "hessian_nbytes": moments.nbytes, "compensated": report.compensated,
                  "gain": report.objective_direct / report.objective_gptq}))
"""


def rows(size: int) -> Iterator[dict[str, object]]:
    """Yield one row per grid."""
    for label, bits, group, scale_format in (("gptq g64", 4, 64, "float16"), ("gptq k g16", 2, 16, "k")):
        command = [sys.executable, "-c", SCRIPT, str(size), str(bits), str(group), scale_format]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        copies = found["extra_nbytes"] / found["hessian_nbytes"]
        yield {"format": label, "bits": bits, "size": size, **found, "hessian_copies": copies}
