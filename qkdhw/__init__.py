"""qkdhw: from QKD hardware to keys that a PKI can use.

Open an instrument with `open_unit(name, url)`; the rooms of the package are described in docs/explanation.
"""

from qkdhw.drivers import open_unit
from qkdhw.version import __version__

__all__ = ["__version__", "open_unit"]
