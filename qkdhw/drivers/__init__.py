"""Drivers: one file a unit family, found through the entry-point group qkdhw.drivers."""
