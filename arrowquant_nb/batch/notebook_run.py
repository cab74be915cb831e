"""Running a notebook with parameters, unattended: check first, execute, write down what it was made from.

papermill executes; this module refuses what papermill lets through (unknown names, wrong types, a user's own notebook
as output), turns a failed cell into one message, and adds the run record to the notebook's metadata. Knows nothing of
what the notebooks do.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from arrowquant_nb.batch.parameters import check_parameters, read_notebook
from arrowquant_nb.config.sources import shown
from arrowquant_nb.errors import (
    ArrowQuantError,
    ConfigurationError,
    ModelNotFoundError,
    OutputError,
    QuantizationError,
)
from arrowquant_nb.run_comparison import NOTEBOOK_KEY
from arrowquant_nb.runs.recorded import read_result

__all__ = ["FinishedNotebook", "packaged_notebook", "run_notebook"]


@dataclass(frozen=True)
class FinishedNotebook:
    """Where an executed notebook and what it made lie; paths as the user gave them."""

    notebook: str
    html: str | None
    model: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        places = {"notebook": self.notebook, "HTML": self.html, "model": self.model}
        return "\n".join(f"{name:<8}  {place}" for name, place in places.items() if place)


def packaged_notebook(name: str = "02_quantize") -> Path:
    """Return the path of a notebook that comes with the package, installed or in a source tree.

    Raises
    ------
    ConfigurationError
        There is no such notebook.
    """
    try:
        folder = Path(str(resources.files("arrowquant_nb._notebooks")))
    except ModuleNotFoundError:  # a source tree on the path: there the package is the folder notebooks/
        folder = Path(__file__).resolve().parents[2] / "notebooks"
    path = folder / f"{name}.ipynb"
    if not path.is_file():
        there = sorted(p.stem for p in folder.glob("*.ipynb"))
        raise ConfigurationError(f"there is no notebook {name!r}; there are: {', '.join(there)}")
    return path


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, object] | None = None,
    *,
    html: bool = False,
    progress_bar: bool = False,
) -> FinishedNotebook:
    """Execute a notebook into `output` and write down in its metadata what it was made from.

    Parameters
    ----------
    notebook : Path
        With a cell tagged `parameters`.
    output : Path
        The executed notebook; its folder is made when missing. After a failure it shows how far the run came. One of
        an earlier run is replaced, any other file is not.
    parameters : Mapping, optional
        Values by name; checked before anything starts.
    html : bool
        Also write one self-contained HTML file beside `output`, replacing only that of an earlier run.
    progress_bar : bool
        Draw papermill's bar over the cells on stderr.

    Raises
    ------
    ConfigurationError
        An unknown parameter or a wrong type; nothing was started.
    QuantizationError
        A cell failed; the message names it and repeats its error.
    OutputError
        `output` cannot be written, or something that no run made lies there or at the place of the HTML file.
    """
    values = dict(parameters or {})
    known = check_parameters(notebook, values)
    if output.suffix != ".ipynb":
        raise ConfigurationError(f"{output}: an executed notebook is named *.ipynb; add the ending")
    _refuse_other_encodings(notebook, output, *values.values())
    _refuse_to_overwrite(notebook, output, html=html)
    _execute(notebook, output, values, progress_bar=progress_bar)
    model = _finished_model(values.get("output", known["output"].default if "output" in known else None))
    _write_record(output, Path(model) if model else None)
    page = _write_html(output) if html else None
    return FinishedNotebook(str(output), str(page) if page else None, model)


def _refuse_other_encodings(*values: object) -> None:
    for value in values:
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"{shown(str(value))}: notebooks hold UTF-8, which this is not: rename it, or set a UTF-8 locale "
                "(LC_ALL=C.UTF-8)"
            ) from error


def _refuse_to_overwrite(notebook: Path, output: Path, *, html: bool) -> None:
    """Raise unless everything that would be written is new or of an earlier run."""
    if "\0" in str(output):
        raise OutputError(f"{shown(output.name)}: no file can have this name: it holds a NUL; choose another one")
    there = os.path.lexists(output)
    try:
        if there and output.exists() and output.samefile(notebook):
            raise OutputError(f"{output}: is the notebook itself; choose another name for the executed one")
    except OSError as error:
        raise _unwritable(output, error) from error
    page = output.with_suffix(".html")
    if there and not _made_by_a_run(output):
        raise OutputError(
            f"{output}: exists and was not made by a run, so it is not overwritten; choose another name for the "
            "executed notebook (two names execute the first one into the second)"
        )
    if html and os.path.lexists(page) and not there:
        raise OutputError(
            f"{page}: exists without a notebook of a run beside it, so it is not overwritten; choose another name"
        )


def _made_by_a_run(path: Path) -> bool:
    try:
        about = read_notebook(path).get("metadata")
    except ArrowQuantError:
        return False
    return isinstance(about, dict) and ("papermill" in about or "arrowquant" in about)


def _finished_model(folder: object) -> str | None:
    """Return the notebook's output folder if a run was finished in it."""
    try:
        return folder if isinstance(folder, str) and Path(folder, "run.json").is_file() else None
    except OSError:  # such as a name that is too long: no run was finished there
        return None


def _execute(notebook: Path, output: Path, values: dict[str, object], *, progress_bar: bool) -> None:
    try:
        import papermill  # noqa: PLC0415 - an extra that loads on first use
        from nbclient.exceptions import CellControlSignal  # noqa: PLC0415 - the same
    except ImportError as error:
        raise ConfigurationError(
            f"running notebooks needs {error.name}: install it with pip install 'arrowquant_nb[notebook]'"
        ) from error
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=values,
            progress_bar=progress_bar,
            kernel_name="python3",
            language="python",
            extra_arguments=["--log-level=40"],
        )
    except papermill.PapermillExecutionError as error:
        _scrub(output)
        raise QuantizationError(
            f"{output}: cell {error.exec_count} failed with {error.ename}: {error.evalue}"
        ) from error
    except (RuntimeError, CellControlSignal) as error:  # of a kernel that died, or never came to life
        raise QuantizationError(f"{output}: the notebook's kernel stopped ({type(error).__name__}): {error}") from error
    except OSError as error:
        raise _unwritable(output, error) from error


def _write_record(output: Path, model: Path | None) -> None:
    """Put run record and result into the notebook's metadata, and file names for the paths that papermill notes."""
    record: dict[str, Any] = {}
    if model is not None:
        run = json.loads((model / "run.json").read_text(encoding="utf-8"))
        run["model"] = Path(str(run.get("model", ""))).name
        record["arrowquant"] = run
        with suppress(ArrowQuantError):  # such as a run that has not finished: then there is no result
            record[NOTEBOOK_KEY] = read_result(model).to_record() | {"quantized_path": model.name}
    _scrub(output, record)


def _scrub(output: Path, record: Mapping[str, Any] | None = None) -> None:
    """Shorten the paths in the notebook's metadata to file names: an executed notebook is passed on."""
    with suppress(ModelNotFoundError):
        document = read_notebook(output)
        about = document["metadata"].get("papermill", {})
        for key in ("input_path", "output_path"):
            if isinstance(about.get(key), str):
                about[key] = Path(about[key]).name
        document["metadata"] |= record or {}
        _replace(output, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _write_html(output: Path) -> Path:
    from arrowquant_nb.ui.page import notebook_page  # noqa: PLC0415 - nbconvert is an extra

    page = output.with_suffix(".html")
    _replace(page, notebook_page(output))
    return page


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")
