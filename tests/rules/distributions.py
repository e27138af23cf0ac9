"""What is shipped, built once for all tests: an sdist from a clean tree, a wheel from that sdist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
IGNORED = ("build", "dist", "*.egg-info", "*.so", "__pycache__", ".[!c]*", "demo-run", "demo-report.html")
BUILD_TIMEOUT_S = 500
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


@dataclass(frozen=True)
class Built:
    """Both distributions, and the wheel installed in a folder of its own."""

    sdist: Path
    wheel: Path
    site: Path

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run something outside of the tree, with the installed wheel before all else."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=self.site.parent, env=UNMEASURED | {"PYTHONPATH": str(self.site)},
            capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False,
        )  # fmt: skip


def build_distributions(place: Path) -> None:
    """Build and install below a new folder; kernels as fast to compile as can be, translated before if they are the same."""
    shutil.copytree(ROOT, place / "tree", ignore=shutil.ignore_patterns(*IGNORED))
    (place / "jobs.cfg").write_text(f"[build_ext]\nparallel = {os.cpu_count()}\n")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "tree"],
        env=UNMEASURED | {
            "DIST_EXTRA_CONFIG": str(place / "jobs.cfg"), "CFLAGS": "-g0", "QKDHW_OPTIMIZE": "0",
            "QKDHW_TRANSLATED": str(ROOT / "build" / "cython" / "translated"),
        },
        capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = (place / "dist").glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run(
        [*install, "--disable-pip-version-check", "--target", place / "site", wheel],
        env=UNMEASURED, check=True, timeout=120,
    )  # fmt: skip


def built_below(place: Path) -> Built:
    """Say what lies below the folder that they were built in."""
    (sdist,) = (place / "dist").glob("*.tar.gz")
    (wheel,) = (place / "dist").glob("*.whl")
    return Built(sdist, wheel, place / "site")
