"""Fuzz every target, two at a time: campaign.py RUNS SEED [NAME ...]. The canaries' seeded bugs must be found.

An input that breaks a target is left in build/judge; run_target.py NAME INPUT shows it again.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz_canary import TARGETS as CANARIES
from fuzz_targets import TARGETS

HERE = Path(__file__).parent
LEFT = Path("build/judge").resolve()


def fuzz(name: str, runs: str, seed: str) -> bool:
    """Fuzz one target; say whether the outcome is as it must be."""
    begin_s = time.monotonic()
    how = ["1000000", "1"] if name in CANARIES else [runs, seed]
    command = [sys.executable, str(HERE / "run_target.py"), name, *how]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:  # libFuzzer ends the process: it tidies nothing up
        ended = subprocess.run(
            command, cwd=LEFT, env=os.environ | {"TMPDIR": place}, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
    output = ended.stdout + ended.stderr
    found = "Uncaught Python exception" in output or ended.returncode != 0
    right = ("ZeroDivisionError: the seeded bug" in output) if name in CANARIES else not found
    counts = [line.strip() for line in output.splitlines() if " cov: " in line]
    print(f"{name:20} {time.monotonic() - begin_s:6.1f} s  {counts[-1].split(' corp')[0] if counts else ''}  "
          f"{'as it must be' if right else 'WRONG'}", flush=True)  # fmt: skip
    if not right:
        print(
            "\n".join(line for line in output.splitlines() if not line.startswith(("INFO: Instrumenting", "#")))[-6000:]
        )
    return right


def main(runs: str, seed: str, *names: str) -> int:
    """Fuzz the targets named, or all."""
    wanted = names or [*CANARIES, *TARGETS]
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda name: fuzz(name, runs, seed), wanted))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{sum(right)} of {len(right)} targets as they must be, {runs} runs each, {used.ru_utime + used.ru_stime:.0f} s of CPU"
    )
    return not all(right)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
