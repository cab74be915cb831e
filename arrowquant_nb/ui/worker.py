"""Work beside the kernel: threads that do it, one queue for what they say, and the pump that empties it.

Only the pump, on the kernel's own loop, touches widgets. Without a running loop (a script, a test) nothing is pumped:
call `drain` until it returns False.
"""

import asyncio
import atexit
import contextlib
import queue
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

__all__ = ["TICK_S", "Outcome", "Worker"]

TICK_S: Final = 0.1
"""Time between two paints of words: ten a second are smooth, more only fill the message queue."""
_Result = TypeVar("_Result")


class Outcome(Generic[_Result]):
    """How a piece of work ended: with a result, or with an error and its traceback."""

    def __init__(self, result: _Result | None = None, error: BaseException | None = None) -> None:
        self.result = result
        self.error = error
        self.traceback = "" if error is None else "".join(traceback.format_exception(error))


class Worker:
    """Runs work in threads and hands what it says to the kernel's loop.

    Parameters
    ----------
    tick : called on the loop at every turn of the pump, after the queue was emptied; returns True while it wants
        further turns although no thread runs, such as to paint what it has held back.
    """

    def __init__(self, tick: Callable[[], bool]) -> None:
        self._tick = tick
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads: dict[threading.Thread, threading.Event] = {}
        self._task: asyncio.Task[None] | None = None
        _ALL.add(self)

    def start(
        self,
        name: str,
        work: Callable[[threading.Event], _Result],
        done: Callable[[Outcome[_Result]], None],
        stop: threading.Event | None = None,
    ) -> threading.Event:
        """Run `work(stop)` in a thread of its own; `done(outcome)` follows on the loop. Returns the flag `stop`.

        Whatever ends the work, an error or an exit of the interpreter included, `done` is told. What the page must know
        is told before: once the thread works, each message waits for it to let go of the interpreter.
        """
        stop = threading.Event() if stop is None else stop

        def run() -> None:
            outcome: Outcome[_Result]
            try:
                outcome = Outcome(work(stop))
            except BaseException as error:  # noqa: BLE001 - it is shown where the work was asked for
                outcome = Outcome(error=error)
            self.post(lambda: done(outcome))

        thread = threading.Thread(target=run, name=f"arrowquant-{name}", daemon=True)
        self._threads[thread] = stop
        thread.start()
        self.pump()
        return stop

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` called on the loop; may be called from any thread."""
        self._queue.put(action)

    def drain(self) -> bool:
        """Do what was posted; return True while a thread runs, something waits, or `tick` wants another turn."""
        while True:
            try:
                action = self._queue.get_nowait()
            except queue.Empty:
                break
            action()
        wanted = self._tick()
        for thread in [t for t in self._threads if not t.is_alive()]:
            del self._threads[thread]
        return bool(self._threads) or wanted or not self._queue.empty()

    def pump(self) -> None:
        """Begin to drain ten times a second on the running loop, unless that is going on already."""
        if self._task is not None and not self._task.done():
            return
        with contextlib.suppress(RuntimeError):  # no loop runs: whoever made this drains
            self._task = asyncio.get_running_loop().create_task(self._turn())

    async def _turn(self) -> None:
        while self.drain():  # noqa: ASYNC110 - there is nothing to await: threads may only fill the queue
            await asyncio.sleep(TICK_S)

    def stop(self, timeout_s: float | None = None) -> bool:
        """Ask every thread to stop; with a timeout also wait that long. Return whether all have ended."""
        for flag in self._threads.values():
            flag.set()
        for thread in list(self._threads):
            if timeout_s is not None:
                thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)


_ALL: "weakref.WeakSet[Worker]" = weakref.WeakSet()


def _at_exit(*_: Any) -> None:
    """Let runs end after the piece they are at, so that nothing is cut off while it writes."""
    for worker in list(_ALL):
        worker.stop()
    for worker in list(_ALL):
        worker.stop(5.0)


atexit.register(_at_exit)
