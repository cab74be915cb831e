"""Notebooks run unattended: `parameters.py` checks what they are given, `notebook_run.py` executes them."""

from arrowquant_nb.batch.notebook_run import FinishedNotebook, packaged_notebook, run_notebook

__all__ = ["FinishedNotebook", "packaged_notebook", "run_notebook"]
