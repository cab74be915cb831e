"""A whole batch: read and check the list, run the jobs, write the summary and the notebook that shows it."""

from collections.abc import Callable
from pathlib import Path

from arrowquant_nb.batch.job_list import read_jobs
from arrowquant_nb.batch.job_queue import run_jobs
from arrowquant_nb.batch.notebook_run import packaged_notebook, run_notebook
from arrowquant_nb.batch.summary import BatchSummary, write_summary

__all__ = ["run_batch"]


def run_batch(
    jobs: str | Path,
    output: str | Path | None = None,
    *,
    at_once: int | None = None,
    html: bool = False,
    progress_callback: Callable[[str, float], None] | None = None,
) -> BatchSummary:
    """Run a notebook over a grid of parameters; what an earlier batch finished is skipped.

    Parameters
    ----------
    jobs : str or Path
        YAML file; `job_list` describes it.
    output : str or Path, optional
        Folder of the batch: one folder per job, `summary.parquet`, `summary.ipynb`, `summary.html`. Default: what the
        file says, else its name without the ending.
    at_once : int, optional
        Jobs that run at the same time; default what the file says, else 2.
    html : bool
        Also write every job's notebook as an HTML file.
    progress_callback : callable, optional
        Called with (message, fraction) when a job has ended.

    Returns
    -------
    BatchSummary
        `passed` is false when a job failed; the others are finished all the same.

    Raises
    ------
    ConfigurationError, ModelNotFoundError
        The file, a parameter or the notebook is refused; nothing was started.
    OutputError
        The folder cannot be written.
    """
    todo = read_jobs(Path(jobs), None if output is None else Path(output), at_once)
    outcomes = run_jobs(todo, html=html, progress_callback=progress_callback)
    summary = write_summary(todo.output, outcomes)
    run_notebook(
        packaged_notebook("batch_summary"), todo.output / "summary.ipynb", {"folder": str(todo.output)}, html=True
    )
    return summary
