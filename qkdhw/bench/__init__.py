"""A bench: the units on one table, opened from a file that names them, their settings and their wiring."""

from qkdhw.bench.events import Recorded, record_events
from qkdhw.bench.file import BenchFile, BenchUnit, Optics, Wire, read_bench_file
from qkdhw.bench.opened import Bench, open_bench, open_bench_unit
from qkdhw.bench.recording import dialogue_test, record_unit, replay_calls

__all__ = [
    "Bench", "BenchFile", "BenchUnit", "Optics", "Recorded", "Wire", "dialogue_test", "open_bench", "open_bench_unit",
    "read_bench_file", "record_events", "record_unit", "replay_calls",
]  # fmt: skip
