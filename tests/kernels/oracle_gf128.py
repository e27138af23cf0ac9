"""POLYVAL (RFC 8452) on Python integers, bit by bit."""

MODULUS = (1 << 128) | (1 << 127) | (1 << 126) | (1 << 121) | 1


def dot(a: int, b: int) -> int:
    product = 0
    for k in range(128):
        if b >> k & 1:
            product ^= a << k
    for _ in range(128):
        if product & 1:
            product ^= MODULUS
        product >>= 1
    return product


def polyval(key: bytes, blocks: list[bytes]) -> bytes:
    value = 0
    for block in blocks:
        value = dot(value ^ int.from_bytes(block, "little"), int.from_bytes(key, "little"))
    return value.to_bytes(16, "little")


def polynomial_hash_of(key: bytes, message: bytes) -> bytes:
    blocks = [message[k : k + 16].ljust(16, b"\0") for k in range(0, len(message), 16)]
    return polyval(key, [*blocks, bytes(8) + (8 * len(message)).to_bytes(8, "little")])
