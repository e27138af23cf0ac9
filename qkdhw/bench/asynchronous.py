"""Units in asyncio programs: the same driver, each call in the unit's own thread; nothing is written twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

from qkdhw.drivers import open_unit
from qkdhw.model import DetectionBlock


class AsyncUnit:
    """An open unit whose methods are coroutines: `await unit.read_status()`; an asynchronous context manager.

    Calls of one unit run one after the other in one thread, so a slow unit holds up nobody else. A cancelled call
    goes on in that thread until its own deadline. Settings are read by `await unit.read_setting(name)` and set by
    `await unit.configure({...})`.
    """

    def __init__(self, unit: Any) -> None:
        self._unit = unit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"unit-{type(unit).__name__}")

    def __getattr__(self, name: str) -> Any:
        if not hasattr(type(self._unit), name):
            raise AttributeError(f"{type(self._unit).__name__} has no method {name!r}")
        return partial(self._call, name)

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        call = partial(getattr(self._unit, name), *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def blocks(self, *, max_events: int = 65536, timeout_s: float = 5.0) -> AsyncIterator[DetectionBlock]:
        """Yield the blocks of a running tagger as they come; empty ones at each deadline."""
        while True:
            yield await self._call("read_block", max_events, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._call("close")
        self._thread.shutdown(wait=False)


async def open_unit_async(name: str, url: str, *, timeout_s: float = 5.0, **options: Any) -> AsyncUnit:
    """Open a unit as `qkdhw.open_unit` does, without holding up the event loop.

    Raises:
        QkdhwError: As `open_unit`.
    """
    return AsyncUnit(await asyncio.to_thread(open_unit, name, url, timeout_s=timeout_s, **options))
