"""Fixtures for other people's tests; they are there as soon as qkdhw is installed.

emulated_unit, emulated_bench and emulated_link serve emulated hardware until the test ends; faulty lets faults strike
for a while. Nothing but this module is imported before a test asks for one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from qkdhw_emulators.bench import ServedBench
    from qkdhw_emulators.faults import FaultSwitches
    from qkdhw_emulators.optics.parameters import LinkParameters
    from qkdhw_emulators.serve import ServedLink, ServedUnit


class HasFaults(Protocol):
    """What faults can be switched on: a served unit, its line, or the emulated unit itself."""

    @property
    def faults(self) -> FaultSwitches: ...  # noqa: D102


class _Struck(Mapping[str, int]):
    """How often each fault struck since this was made, by name."""

    def __init__(self, faults: FaultSwitches) -> None:
        self._faults = faults
        self._before = faults.struck.copy()

    def __getitem__(self, name: str) -> int:
        from qkdhw_emulators.faults import Fault

        if name not in set(Fault):
            raise KeyError(name)
        return self._faults.struck[Fault(name)] - self._before[Fault(name)]

    def __iter__(self) -> Iterator[str]:
        return iter([str(fault) for fault in self._faults.struck if self[fault]])

    def __len__(self) -> int:
        return len(list(iter(self)))


@pytest.fixture
def emulated_unit() -> Iterator[Callable[..., ServedUnit]]:
    """Serve units by name: `emulated_unit("sfifteen-tdc1", on="pty", seed=1, faults=["drop:rate=0.1"], pace=None)`.

    `on` is a `qkdhw_emulators.serve.ServedOn`. With a `pace` the unit's clock runs at so many seconds per second;
    without one its waits are jumped over. Returns a `qkdhw_emulators.serve.ServedUnit`; open its `url`.
    """
    with ExitStack() as stack:

        def serve(
            name: str, *, on: str = "pty", seed: int = 1, faults: Iterable[str] = (), pace: float | None = None
        ) -> ServedUnit:
            from qkdhw_emulators.in_process import make_unit
            from qkdhw_emulators.serve import serve_unit
            from qkdhw_emulators.world import VirtualClock, World

            world = World(seed=seed, clock=VirtualClock(pace=pace))
            return stack.enter_context(serve_unit(make_unit(name, world), world, transport=on, faults=faults))

        yield serve


@pytest.fixture
def emulated_bench() -> Iterator[Callable[..., ServedBench]]:
    """Serve all units of a bench file, each where the file says: `emulated_bench(path, seed=1, pace=None)`.

    Returns a `qkdhw_emulators.bench.ServedBench`.
    """
    with ExitStack() as stack:

        def serve(path: Path | str, *, seed: int = 1, pace: float | None = None) -> ServedBench:
            from qkdhw_emulators.bench import serve_bench
            from qkdhw_emulators.world import VirtualClock, World

            world = World(seed=seed, clock=VirtualClock(pace=pace))
            return stack.enter_context(serve_bench(Path(path), world))

        yield serve


@pytest.fixture
def emulated_link() -> Iterator[Callable[..., ServedLink]]:
    """Serve a transmitter and a receiver with a fibre between: `emulated_link(LinkParameters(loss_db=3), seed=1)`.

    Further options are those of `qkdhw_emulators.serve.serve_link`, which says what is returned.
    """
    with ExitStack() as stack:

        def serve(parameters: LinkParameters | None = None, *, seed: int = 1, **options: Any) -> ServedLink:
            from qkdhw_emulators.serve import serve_link

            return stack.enter_context(serve_link(parameters, seed=seed, **options))

        yield serve


@pytest.fixture
def faulty() -> Callable[..., AbstractContextManager[Mapping[str, int]]]:
    """Switch faults on for a while, in a with statement: `faulty(served, "late-reply:count=1", "drop:rate=0.1")`.

    Names and options are those of `qkdhw_emulators.faults`. `with faulty(...) as struck`: `struck["drop"]` says how
    often it struck so far. One with a count that did not strike so often at the end fails the test; `used_up=False`
    allows it.
    """

    @contextmanager
    def switched(served: HasFaults, *faults: str, used_up: bool = True) -> Iterator[Mapping[str, int]]:
        from qkdhw_emulators.faults import Fault

        struck = _Struck(served.faults)
        try:
            for fault in faults:
                served.faults.parse(fault)
            yield struck
            for text in faults if used_up else ():
                name, *options = text.split(":")
                counts = [int(option.removeprefix("count=")) for option in options if option.startswith("count=")]
                if counts and struck[name] < counts[-1]:
                    pytest.fail(f"{text} struck {struck[name]} times (one that lasts, as silent does, is not counted)")
        finally:
            for name in {fault.partition(":")[0] for fault in faults} & set(Fault):
                served.faults.discard(Fault(name))

    return switched
