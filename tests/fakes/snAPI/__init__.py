"""Stands in for PicoQuant's snAPI."""
