"""For all tests: a test that leaves a thread running fails, and so does one that leaves a child process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

LONGEST_WAIT_S = 5.0

# A slow machine fails no test: Hypothesis counts neither the time of an example nor that of making one up. Its examples
# are the same in each run, so that a change is judged by what it changes; QKDHW_EXPLORE=1 looks for new ones.
ANY_MACHINE = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("QKDHW_EXPLORE") != "1",
)
settings.register_profile("any-machine", ANY_MACHINE)
settings.register_profile("judges", ANY_MACHINE, max_examples=30)  # the same tests on builds that are slow and see more
settings.load_profile("any-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that may take longest, so that no worker is left alone with one at the end."""

    def limit_s(item: pytest.Item) -> float:
        limit = item.get_closest_marker("timeout")
        return limit.args[0] if limit else 0.0

    items.sort(key=limit_s, reverse=True)


@pytest.fixture(autouse=True)
def _no_leaked_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + LONGEST_WAIT_S
    while True:
        left = [t for t in threading.enumerate() if t not in before and not t.daemon]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert left == [], "the test left threads running"


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> None:
    os.environ.pop("SOFTHSM2_CONF", None)
