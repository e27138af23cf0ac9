"""SecretBuffer: memory for keys that is locked, wiped, never printed and compared in constant time.

This is the one name by which every room knows it; the code is compiled, in qkdhw._core.secret_buffer.
"""

from qkdhw._core.secret_buffer import SecretBuffer, unlocked_count

__all__ = ["SecretBuffer", "unlocked_count"]
