"""Drivers: one file a unit family, found through the entry-point group qkdhw.drivers."""

from qkdhw.drivers.registry import installed_drivers, load_driver, open_unit

__all__ = ["installed_drivers", "load_driver", "open_unit"]
