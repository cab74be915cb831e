"""Notebooks run unattended, one or many.

parameters.py    what can be set in a notebook
notebook_run.py  one notebook with parameters
job_list.py      a grid of parameters, read from YAML
job_queue.py     jobs worked off, each in a process of its own (job_process.py)
summary.py       what came out, as a table and Parquet
batch_run.py     the three in a row
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrowquant_nb.batch.batch_run import run_batch
    from arrowquant_nb.batch.notebook_run import FinishedNotebook, packaged_notebook, run_notebook
    from arrowquant_nb.batch.summary import BatchSummary, read_summary

__all__ = ["BatchSummary", "FinishedNotebook", "packaged_notebook", "read_summary", "run_batch", "run_notebook"]

# Loaded on first use: they need the kernels and pyarrow, which `arrowquant --help` can do without.
_HOMES = {
    "BatchSummary": "summary",
    "FinishedNotebook": "notebook_run",
    "packaged_notebook": "notebook_run",
    "read_summary": "summary",
    "run_batch": "batch_run",
    "run_notebook": "notebook_run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'arrowquant_nb.batch' has no attribute {name!r}")
    return getattr(import_module(f"arrowquant_nb.batch.{_HOMES[name]}"), name)
