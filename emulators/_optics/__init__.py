"""Compiled kernels of the emulated optics; their sources are in ext/optics."""
