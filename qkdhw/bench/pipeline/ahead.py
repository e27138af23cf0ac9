"""A thread that reads ahead into a bounded queue: a full queue slows the reader, and nothing is dropped here."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from qkdhw.errors import TransportTimeoutError

T = TypeVar("T")
DEPTH = 4
POLL_S = 0.1  # how soon the thread notices that it shall end
STUCK_S = 10.0


@dataclass(slots=True)
class _End:
    error: Exception | None = None


class Ahead(Generic[T]):
    """What an iterator gives, made in a thread that is a few steps ahead; a context manager and an iterator.

    Args:
        make: Given the event that tells it to end, returns the iterator; it is run and closed in the thread.
        name: Of the thread.
        timeout_s: Longest wait for the next item.
        depth: How many items may wait.
    """

    def __init__(
        self, make: Callable[[threading.Event], Iterator[T]], name: str, *, timeout_s: float, depth: int = DEPTH
    ) -> None:
        self._make = make
        self._name = name
        self._timeout_s = timeout_s
        self._items: queue.Queue[T | _End] = queue.Queue(depth)
        self._stopping = threading.Event()
        self._abandoned = threading.Event()
        self._ended = False
        self._stalls = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stalls(self) -> int:
        """How often the queue was full and the reading waited."""
        return self._stalls

    def stop(self) -> None:
        """Tell the reader to end; what it has read is handed out before the iteration ends."""
        self._stopping.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._abandoned.set()
        self._thread.join(STUCK_S)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next item.

        Raises:
            TransportTimeoutError: None came in time; asking again is allowed.
            QkdhwError: Whatever ended the reading; what came before is handed out first.
        """
        if self._ended:
            raise StopIteration
        deadline_s = time.monotonic() + self._timeout_s
        try:
            item = self._items.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            raise TransportTimeoutError(
                f"{self._name}: nothing came for {self._timeout_s:g} s",
                remedy="check that the unit runs, its cable and the light, or allow more time",
            ) from None
        if not isinstance(item, _End):
            return item
        self._ended = True
        if item.error is not None:
            raise item.error
        raise StopIteration

    def _run(self) -> None:
        end = _End()
        try:
            for item in self._make(self._stopping):
                if not self._put(item):
                    return
        except Exception as error:  # noqa: BLE001 - whatever ends the thread is raised where its data is awaited
            end.error = error
        self._put(end)

    def _put(self, item: T | _End) -> bool:
        self._stalls += self._items.full()
        while not self._abandoned.is_set():
            try:
                self._items.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False
