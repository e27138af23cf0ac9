"""SecretBuffer: memory for keys that is locked, wiped, never printed and compared in constant time.

This is the one name by which every room knows it; the code is compiled, in qkdhw._core.secret_buffer.
"""

# Import the package, not the module: import-linter does not see compiled modules, and this edge must be seen.
from qkdhw._core import secret_buffer

SecretBuffer = secret_buffer.SecretBuffer
unlocked_count = secret_buffer.unlocked_count

__all__ = ["SecretBuffer", "unlocked_count"]
