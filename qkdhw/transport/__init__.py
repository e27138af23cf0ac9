"""Byte links to units, opened by URL; each a thin adapter over one library."""

from qkdhw.transport.byte_link import ByteLink
from qkdhw.transport.open import open_transport

__all__ = ["ByteLink", "open_transport"]
