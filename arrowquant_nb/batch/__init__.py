"""Notebooks run unattended, one or many.

parameters.py    what can be set in a notebook
notebook_run.py  one notebook with parameters
job_list.py      a grid of parameters, read from YAML
job_queue.py     jobs worked off, each in a process of its own (job_process.py)
summary.py       what came out, as a table and Parquet
batch_run.py     the three in a row
"""

from arrowquant_nb.batch.batch_run import run_batch
from arrowquant_nb.batch.notebook_run import FinishedNotebook, packaged_notebook, run_notebook
from arrowquant_nb.batch.summary import BatchSummary, read_summary

__all__ = ["BatchSummary", "FinishedNotebook", "packaged_notebook", "read_summary", "run_batch", "run_notebook"]
