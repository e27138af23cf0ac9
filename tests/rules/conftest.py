"""The distributions, for all tests that look at them; test workers share one build."""

from __future__ import annotations

import fcntl
import os

import pytest
from distributions import Built, build_distributions, built_below


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributions"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            build_distributions(place)
    return built_below(place)
