"""One byte-level emulator a unit family, sans-I/O: receive(bytes) -> bytes, time as an argument."""
