"""A bound for calls of libraries that may hang whatever time-out they were given."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from qkdhw.errors import QkdhwError, TransportTimeoutError

T = TypeVar("T")


def bounded(call: Callable[[], T], timeout_s: float, *, what: str, late: Callable[[T], object] | None = None) -> T:
    """Run a call on a thread of its own and wait for it; one that hangs is left behind.

    Args:
        call: Returns, or raises an error of this package.
        timeout_s: Longest wait.
        what: What the call does, for the error.
        late: Takes a result for which nobody waits any more, to close it.

    Raises:
        TransportTimeoutError: It did not return in time.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except QkdhwError as error:
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
            return
        if outcome.set_running_or_notify_cancel():
            outcome.set_result(result)
        elif late is not None:
            with contextlib.suppress(QkdhwError):  # nobody is there to tell
                late(result)

    threading.Thread(target=run, name=f"bounded: {what}", daemon=True).start()
    try:
        return outcome.result(timeout_s)
    except TimeoutError:
        if not outcome.cancel():  # it has come back this very moment
            return outcome.result()
        raise TransportTimeoutError(
            f"{what} did not come back within {timeout_s:.3g} s", remedy="check the address and that the unit is on"
        ) from None
