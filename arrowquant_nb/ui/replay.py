"""A run's `events.jsonl`, read as far as it has been written, again and again while the run goes on."""

import json
from pathlib import Path

from arrowquant_nb.errors import MetadataError, ModelNotFoundError
from arrowquant_nb.events import Event, event_from_dict
from arrowquant_nb.storage.output import EVENTS_NAME, is_being_written

__all__ = ["EventLog"]


class EventLog:
    """Reads what is new.

    Parameters
    ----------
    path : the log, or the folder of the run.

    Raises
    ------
    ModelNotFoundError
        There is no log.
    """

    def __init__(self, path: str | Path) -> None:
        given = Path(path)
        self.path = given / EVENTS_NAME if given.is_dir() else given
        if not self.path.is_file():
            raise ModelNotFoundError(f"there is no log of a run at {given}: give a run's folder or its {EVENTS_NAME}")
        self._read = 0
        self._n_lines = 0

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.path.parent

    def running(self) -> bool:
        """Tell whether a run holds the folder now."""
        return is_being_written(self.folder)

    def new_events(self) -> list[Event]:
        """Return the events written since the last call; from the start when a new run began the log afresh.

        A torn last line is left for the next call.

        Raises
        ------
        MetadataError
            A whole line is not an event.
        """
        if self.path.stat().st_size < self._read:
            self._read = self._n_lines = 0
        with self.path.open("rb") as file:
            file.seek(self._read)
            *lines, torn = file.read().split(b"\n")
            self._read = file.tell() - len(torn)
        events = []
        for line in lines:
            self._n_lines += 1
            try:
                events.append(event_from_dict(json.loads(line.decode("utf-8", "surrogatepass"))))
            except (MetadataError, ValueError, AttributeError, TypeError, RecursionError) as error:
                raise MetadataError(f"{self.path}, line {self._n_lines} is not an event of a run: {error}") from error
        return events
