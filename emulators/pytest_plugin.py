"""Fixtures for other people's CI: `pytest_plugins = ["qkdhw_emulators.pytest_plugin"]`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.serve import ServedLink, serve_link


@pytest.fixture
def qkd_link(request: pytest.FixtureRequest) -> Iterator[ServedLink]:
    """Emulated transmitter and receiver on one optical link, seed 1.

    Other links: `@pytest.mark.parametrize("qkd_link", [LinkParameters(loss_db=3)], indirect=True)`.
    """
    parameters: LinkParameters | None = getattr(request, "param", None)
    with serve_link(parameters, seed=1) as served:
        yield served
