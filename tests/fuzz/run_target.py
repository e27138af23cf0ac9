"""Fuzz one target: run_target.py NAME RUNS SEED, or run_target.py NAME INPUT for an input that an earlier run left.

The kernels must come from the bounds-checked build, which knows coverage: `make fuzz` sees to that.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

# The kernels (coverage.h) look for libFuzzer among the symbols of the whole process.
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
import atheris.core_with_libfuzzer  # noqa: E402

sys.setdlopenflags(os.RTLD_NOW)
WATCHED = ["qkdhw.formats", "qkdhw.postprocessing", "qkdhw.drivers", "fuzz_canary"]


def main(name: str, *how: str) -> None:
    """Never returns: libFuzzer ends the process, with 0 after so many runs without a finding."""
    with atheris.instrument_imports(include=WATCHED):
        target = importlib.import_module("fuzz_canary" if name.startswith("canary") else "fuzz_targets").TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as corpus:
        if len(how) == 1:
            options = [*how]
        else:
            for i, octets in enumerate(target.seeds()):
                Path(corpus, f"seed-{i}").write_bytes(octets)
            options = [f"-runs={int(how[0]) // target.slowness}", f"-seed={how[1]}", f"-max_len={target.max_bytes}",
                       "-rss_limit_mb=4096", f"-artifact_prefix={name}-", corpus]  # fmt: skip
        atheris.Setup([sys.argv[0], *options], target.check, internal_libfuzzer=True)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
