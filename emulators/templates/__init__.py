"""Drivers with their emulators, one file each, working as they are: `qkdhw devices new` copies them by another name."""
