"""`python -m qkdhw_emulators` is `qkdhw emulate`."""

import sys

from qkdhw_emulators.serve_command import run_command

if __name__ == "__main__":
    sys.exit(run_command())
