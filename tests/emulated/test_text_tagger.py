"""Time taggers that speak lines of text, on the example of one: what their common base promises."""

import importlib
import threading
from pathlib import Path

from qkdhw.errors import UnitStateError
from qkdhw.transport import open_transport
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.world import World

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "acme-rx9"


def test_of_two_threads_that_start_at_once_one_starts(monkeypatch):
    def start():
        ready.wait()
        try:
            tagger.start()
            ends.append("started")
        except UnitStateError:
            ends.append("runs already")

    monkeypatch.syspath_prepend(EXAMPLE)
    example = importlib.import_module("acme_rx9")
    ends, ready, world = [], threading.Barrier(2), World(seed=3)
    with (
        serve_unit(example.EmulatedAcmeRx9(world), world, transport="pty") as served,
        example.AcmeRx9(open_transport(served.url), timeout_s=2.0) as tagger,
    ):
        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(ends) == ["runs already", "started"]
