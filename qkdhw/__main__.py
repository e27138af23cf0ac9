"""`python -m qkdhw` is the command `qkdhw`."""

from qkdhw.cli import main

if __name__ == "__main__":
    main()
