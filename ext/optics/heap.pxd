# Times of what is to come, the earliest first (text, no module of its own).
from libc.stdlib cimport realloc


cdef struct heap_t:
    double* at  # the earliest is at 0
    Py_ssize_t n
    Py_ssize_t room


cdef inline int heap_add(heap_t* heap, double time) except -1 nogil:
    cdef Py_ssize_t i = heap.n, parent
    cdef double* grown
    if i == heap.room:
        grown = <double*>realloc(heap.at, (2 * i + 64) * sizeof(double))
        if grown is NULL:
            with gil:
                raise MemoryError
        heap.at = grown
        heap.room = 2 * i + 64
    heap.n += 1
    while i > 0:
        parent = (i - 1) >> 1
        if heap.at[parent] <= time:
            break
        heap.at[i] = heap.at[parent]
        i = parent
    heap.at[i] = time
    return 0


cdef inline int heap_drop(heap_t* heap) noexcept nogil:
    """Take the earliest out."""
    cdef Py_ssize_t i = 0, child
    cdef double last
    heap.n -= 1
    last = heap.at[heap.n]
    while True:
        child = 2 * i + 1
        if child >= heap.n:
            break
        if child + 1 < heap.n and heap.at[child + 1] < heap.at[child]:
            child += 1
        if last <= heap.at[child]:
            break
        heap.at[i] = heap.at[child]
        i = child
    heap.at[i] = last
    return 0
