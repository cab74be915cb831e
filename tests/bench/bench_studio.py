"""What the studio costs the kernel: first paint, one paint at 1,000 layers, the pump's share, import times.

Ratios and medians of one run on one machine; nothing here fails on a slow one.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROUNDS = 7
MODULES = ("ipywidgets", "plotly", "torch", "anywidget", "papermill")


def import_time() -> tuple[float, list[str]]:
    """Median seconds of `import arrowquant_nb` in a fresh interpreter, and what it should not have loaded."""
    code = (
        "import time, sys; began = time.perf_counter(); import arrowquant_nb; "
        f"print(time.perf_counter() - began, *[m for m in {MODULES!r} if m in sys.modules])"
    )
    seconds, loaded = [], []
    for _ in range(ROUNDS):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        seconds.append(float(out[0]))
        loaded = out[1:]
    return statistics.median(seconds), loaded


def first_paint() -> tuple[float, float]:
    """Seconds from the call to a studio with its plan in a fresh interpreter, by the clock and of its thread's CPU."""
    code = (
        "import time; import arrowquant_nb as aq; began, cpu = time.perf_counter(), time.thread_time(); aq.studio(); "
        "print(time.perf_counter() - began, time.thread_time() - cpu)"
    )
    found = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        found.append((float(out[0]), float(out[1])))
    return min(a for a, _ in found), min(b for _, b in found)


def paint_cost(n_layers: int) -> tuple[list[float], float, int]:
    """CPU seconds of each paint while layers come in, of the whole pump, and bytes of the figure's data."""
    from made_up_run import layer_events, started

    from arrowquant_nb.ui.dashboard import Dashboard
    from arrowquant_nb.ui.run_state import RunState
    from arrowquant_nb.ui.worker import Worker

    now = [0.0]
    worker = Worker(lambda: False)
    board = Dashboard(worker, clock=lambda: now[0])
    state = RunState().apply(started(n_layers))
    paints = []
    cpu = 0.0
    for i in range(n_layers):
        began = time.process_time()
        for event in layer_events(i, n_layers):
            state = state.apply(event)
        cpu += time.process_time() - began
        now[0] += 0.02  # fifty layers a second
        if i % 5 == 4:  # ten turns of the pump a second
            began = time.process_time()
            board.show(state)
            before = board.figure.n_paints
            board.tick()
            spent = time.process_time() - began
            cpu += spent
            if board.figure.n_paints > before:
                paints.append(spent)
    return paints, cpu / now[0], len(board.figure.figure.to_json())


def worst_gap() -> tuple[float, float, float]:
    """Longest silence of the kernel's loop while the sample is calibrated and quantized for the first time, in seconds;
    the most processor time that the loop itself took in a silence; and how long the run took.

    On a machine with other work a silence is mostly waiting for a core.
    """
    code = """
import asyncio, os, tempfile, time
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
import arrowquant_nb as aq

async def watch():
    app = aq.studio(config=aq.DiffusionQuantConfig())
    while "arrowquant-ahead" in {t.name for t in __import__("threading").enumerate()}:
        await asyncio.sleep(0.05)
    app.output.value = tempfile.mkdtemp() + "/out"
    app.start()
    began = last = time.perf_counter()
    gap = own = 0.0
    cpu = time.thread_time()
    while app.drain():
        await asyncio.sleep(0.005)
        now, used = time.perf_counter(), time.thread_time()
        gap, last = max(gap, now - last), now
        own, cpu = max(own, used - cpu), used
    print(gap, own, time.perf_counter() - began)

asyncio.run(watch())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(out[0]), float(out[1]), float(out[2])


def notebook_size(n_blocks: int) -> tuple[int, int, int]:
    """Layers of a model, and the bytes of two notebooks that quantized it, saved without and with widget state."""
    import tempfile

    import nbformat
    from conftest import dit_tensors, write_checkpoint
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder) / "model", dit_tensors(n_blocks=n_blocks, width=64))
        cells = (
            "import arrowquant_nb as aq\nfrom arrowquant_nb.ui.progress import progress_line",
            "quantizer = aq.ArrowQuantV2(aq.DiffusionQuantConfig(method='rtn'))",
            f"model = {str(model)!r}",
            "result = quantizer.quantize_diffusion_model(model, 'out', progress_callback=progress_line())",
            "result",
            "aq.dashboard('out')",
        )
        sizes = []
        for state in (False, True):
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
            NotebookClient(
                notebook, store_widget_state=state, resources={"metadata": {"path": folder}}, kernel_name="python3"
            ).execute()
            sizes.append(len(nbformat.writes(notebook)))
        return n_blocks * 9, sizes[0], sizes[1]


def main() -> None:
    """Print the figures."""
    seconds, loaded = import_time()
    print(f"import arrowquant_nb: {seconds * 1000:.0f} ms (limit 500), loaded too: {', '.join(loaded) or 'nothing'}")
    seconds, cpu = first_paint()
    print(f"studio, call to plan: {seconds:.2f} s in a fresh kernel (limit 2), of which {cpu:.2f} s of its CPU")
    gap, own, took = worst_gap()
    print(f"a first run of the sample ({took:.1f} s): the kernel is silent for {gap * 1000:.0f} ms at most "
          f"(limit 200), its own work in one go {own * 1000:.0f} ms of CPU at most")  # fmt: skip
    paint_cost(28)  # loads plotly
    for n in (28, 500, 1000):
        paints, share, nbytes = paint_cost(n)
        line = f"{statistics.median(paints) * 1000:.1f} ms median, {max(paints) * 1000:.1f} ms worst (limit 25)"
        print(f"{n} layers at 50 a second: a paint takes {line}; pump {share:.1%} of a core (limit 10 %); "
              f"figure {nbytes / 1000:.0f} kB (limit 100)")  # fmt: skip

    layers, bare, stated = notebook_size(56)
    print(f"a notebook that quantized {layers} layers, result and dashboard shown: {bare / 1000:.0f} kB (limit 1000), "
          f"{stated / 1e6:.1f} MB with the state of its widgets")  # fmt: skip


if __name__ == "__main__":
    main()
