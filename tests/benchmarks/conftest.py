"""Benchmarks end with a table of ratios, each measured against its oracle in the same run."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what each benchmark noted; a ratio above 1 means that the kernel is faster."""
    session = getattr(config, "_benchmarksession", None)
    noted = [bench for bench in getattr(session, "benchmarks", []) if bench.extra_info]
    if not noted:
        return
    terminalreporter.section("ratios, measured in this run")
    for bench in sorted(noted, key=lambda each: each.name):
        facts = ", ".join(f"{name} {value}" for name, value in bench.extra_info.items())
        terminalreporter.write_line(f"{bench.name:45s} {facts}")
