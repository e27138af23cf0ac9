"""Byte links to units, opened by URL; each a thin adapter over one library."""
