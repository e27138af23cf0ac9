"""Compiled kernels. One .pyi each says shapes and units; each equals its NumPy oracle in tests/kernels."""
