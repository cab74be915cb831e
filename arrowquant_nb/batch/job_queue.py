"""Working through a list of jobs: so many at a time, each in a process of its own, what is finished left alone.

Every job has a folder with `run.ipynb`, `model/` and `job.json`; the last is written when the job has ended and holds
the hash by which a later batch knows it again. A job that fails leaves its message there and stops no other.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from arrowquant_nb.batch.job_list import Job, JobList
from arrowquant_nb.config.sources import ENVIRONMENT_PREFIX
from arrowquant_nb.errors import OutputError
from arrowquant_nb.storage.manifest import MANIFEST_NAME

__all__ = ["JobOutcome", "run_jobs"]

NOTEBOOK_NAME: Final = "run.ipynb"
MODEL_NAME: Final = "model"
_RECORD_NAME: Final = "job.json"
_SECONDS_TO_STOP: Final = 10.0
_SHOWN_STDERR: Final = 400


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended."""

    name: str
    state: str
    """finished, skipped (finished by an earlier batch) or failed."""
    seconds: float
    """Of the run that made it."""
    parameters: Mapping[str, object]
    error: str | None = None
    """What went wrong, and what to do."""
    has_model: bool = False
    """Whether a finished model lies in the job's folder."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self) | {"parameters": dict(self.parameters)}


def run_jobs(
    todo: JobList,
    *,
    html: bool = False,
    progress_callback: Callable[[str, float], None] | None = None,
) -> tuple[JobOutcome, ...]:
    """Run every job that is not finished yet.

    Parameters
    ----------
    todo : JobList
        Each job is started with an equal share of the threads that this process may use.
    html : bool
        Also write each executed notebook as an HTML file.
    progress_callback : callable, optional
        Called with (message, fraction) when a job has ended, the fraction rising from 0.0 to 1.0.

    Returns
    -------
    tuple
        One outcome per job, in the order of the list.

    Raises
    ------
    OutputError
        The folder cannot be written, or another batch is writing it.
    """
    say = progress_callback or (lambda message, fraction: None)  # noqa: ARG005 - the parameters' names say what they are
    try:
        todo.output.mkdir(parents=True, exist_ok=True)
        with FileLock(todo.output / ".batch.lock", timeout=0):
            return _run(todo, html, say)
    except Timeout as error:
        raise OutputError(f"another batch is writing {todo.output}: wait for it, or choose another folder") from error
    except OSError as error:
        raise OutputError(f"{error.filename or todo.output}: cannot be written: {error.strerror or error}") from error


def _run(todo: JobList, html: bool, say: Callable[[str, float], None]) -> tuple[JobOutcome, ...]:
    outcomes: dict[str, JobOutcome] = {}
    say(f"{len(todo.jobs)} jobs, {todo.at_once} at a time", 0.0)
    pool = _Processes(todo, html)
    with ThreadPoolExecutor(todo.at_once, thread_name_prefix="arrowquant-batch") as threads:
        waiting: dict[Future[JobOutcome], Job] = {}
        try:
            for job in todo.jobs:
                earlier = _earlier(todo, job, html)
                if earlier is None:
                    waiting[threads.submit(pool.run, job)] = job
                else:
                    outcomes[job.name] = earlier
                    say(f"{job.name}: finished before", len(outcomes) / len(todo.jobs))
            for done in as_completed(waiting):
                outcome = outcomes[waiting[done].name] = done.result()
                words = "finished" if outcome.error is None else f"FAILED: {outcome.error}"
                say(f"{outcome.name}: {words}, {outcome.seconds:.1f} s", len(outcomes) / len(todo.jobs))
        except BaseException:
            for future in waiting:
                future.cancel()
            pool.stop()
            raise
    return tuple(outcomes[job.name] for job in todo.jobs)


def _earlier(todo: JobList, job: Job, html: bool) -> JobOutcome | None:
    """Return what an earlier batch made of this very job, if it finished it and everything is still there."""
    folder = todo.output / job.name
    try:
        record = json.loads((folder / _RECORD_NAME).read_text(encoding="utf-8"))
        if record["key"] != job.key or record["error"] is not None:
            return None
        seconds, has_model = float(record["seconds"]), bool(record["has_model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    made = [NOTEBOOK_NAME, *([f"{MODEL_NAME}/{MANIFEST_NAME}"] if has_model else [])]
    if html:
        made.append(Path(NOTEBOOK_NAME).with_suffix(".html").name)
    if not all((folder / name).is_file() for name in made):
        return None
    return JobOutcome(job.name, "skipped", seconds, job.parameters, None, has_model)


class _Processes:
    """The processes of the jobs that are running."""

    def __init__(self, todo: JobList, html: bool) -> None:
        self._todo = todo
        self._html = html
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        n_threads = str(max(1, len(os.sched_getaffinity(0)) // todo.at_once))
        threads = {"OMP_NUM_THREADS": n_threads, ENVIRONMENT_PREFIX + "NUM_THREADS": n_threads}
        self._environment = threads | dict(os.environ)

    def run(self, job: Job) -> JobOutcome:
        """Run one job to its end and write down how it went."""
        folder = self._todo.output / job.name
        folder.mkdir(exist_ok=True)
        (folder / _RECORD_NAME).unlink(missing_ok=True)
        began = time.monotonic()
        error = self._execute(job, folder)
        has_model = self._todo.makes_models and (folder / MODEL_NAME / MANIFEST_NAME).is_file()
        seconds = round(time.monotonic() - began, 3)
        outcome = JobOutcome(
            job.name, "finished" if error is None else "failed", seconds, job.parameters, error, has_model
        )
        if not self._stopped:
            record = {"key": job.key, **outcome.to_dict()}
            part = folder / (_RECORD_NAME + ".part")
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            part.replace(folder / _RECORD_NAME)
        return outcome

    def stop(self) -> None:
        """Interrupt what is running, as Ctrl-C would, and end what does not answer."""
        self._stopped = True
        for process in list(self._running):
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _SECONDS_TO_STOP
        for process in list(self._running):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _execute(self, job: Job, folder: Path) -> str | None:
        """Return the error of the job's process, None when there is none."""
        if self._stopped:
            return "interrupted"
        model = {"output": str(folder / MODEL_NAME)} if self._todo.makes_models else {}
        request = {
            "notebook": str(self._todo.notebook), "output": str(folder / NOTEBOOK_NAME), "html": self._html,
            "parameters": dict(job.parameters) | model,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "arrowquant_nb.batch.job_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=self._environment,
        )  # fmt: skip
        self._running.add(process)
        try:
            answer, remarks = process.communicate(json.dumps(request))
        finally:
            self._running.discard(process)
        with suppress(ValueError, KeyError, IndexError, TypeError):
            error = json.loads(answer.splitlines()[-1])["error"]
            return None if error is None else str(error)
        ended = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        return f"the job's process ended with {ended}: {remarks.strip()[-_SHOWN_STDERR:] or 'it said nothing'}"
