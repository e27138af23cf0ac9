# Rounding for kernels (text, no module of its own).
from libc.stdint cimport int64_t


cdef inline int64_t whole(double x) noexcept nogil:
    """The floor, without what x86-64's baseline needs for infinite or huge values."""
    cdef int64_t cut = <int64_t>x
    return cut - (cut > x)
