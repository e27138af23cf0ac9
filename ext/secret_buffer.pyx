"""Memory for keys: own pages between two guard pages, locked, kept out of core dumps and forks, wiped on close."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t
from libc.string cimport memcpy


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int mprotect(void *address, size_t length, int protection)
    int madvise(void *address, size_t length, int advice)
    int mlock(const void *address, size_t length)
    void *MAP_FAILED
    int PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTDUMP, MADV_WIPEONFORK


cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t length, unsigned int flags)


cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t length)
    long sysconf(int name)
    int _SC_PAGESIZE


cdef extern from "<string.h>" nogil:
    void explicit_bzero(void *address, size_t length)


cdef size_t PAGE_BYTES = <size_t>sysconf(_SC_PAGESIZE)
cdef Py_ssize_t not_locked = 0


def unlocked_count():
    """Return how many SecretBuffers of this process the system refused to lock; such pages may reach the swap."""
    return not_locked


cdef int _equal(const uint8_t *left, const uint8_t *right, size_t n) except -1 nogil:
    # volatile: the loop must neither be left early nor be turned into a memcmp
    cdef volatile uint8_t difference = 0
    cdef size_t k
    for k in range(n):
        difference = difference | (left[k] ^ right[k])
    return difference == 0


@cython.final
cdef class SecretBuffer:
    """A writable buffer of `n` bytes for key material; a context manager that wipes on leaving.

    It has the buffer protocol (memoryview, numpy.frombuffer), is never copied, pickled, hashed or printed, and
    compares in constant time. After a fork the child sees zeros.

    Args:
        n: Length in bytes, 0 allowed; the contents start as zeros.
        require_lock: Raise OSError if the system refuses to lock the pages, instead of counting that
            (`locked`, `unlocked_count`).

    Raises:
        ValueError: If n is negative.
        OSError: If the system gives no such memory.
    """

    cdef uint8_t *base
    cdef uint8_t *data
    cdef size_t n
    cdef size_t span_bytes
    cdef Py_ssize_t exports
    cdef bint is_locked

    def __cinit__(self, Py_ssize_t n, *, bint require_lock=False):
        global not_locked
        cdef void *address
        cdef uint8_t *middle
        if n < 0:
            raise ValueError(f"a SecretBuffer's length is {n} bytes, not 0 or more")
        self.base = NULL
        self.n = <size_t>n
        self.span_bytes = (self.n // PAGE_BYTES + (1 if self.n % PAGE_BYTES or n == 0 else 0)) * PAGE_BYTES
        address = mmap(NULL, self.span_bytes + 2 * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if address == MAP_FAILED:
            PyErr_SetFromErrno(OSError)
        self.base = <uint8_t *>address
        middle = self.base + PAGE_BYTES
        if mprotect(middle, self.span_bytes, PROT_READ | PROT_WRITE) != 0:
            PyErr_SetFromErrno(OSError)
        if madvise(middle, self.span_bytes, MADV_DONTDUMP) != 0:
            PyErr_SetFromErrno(OSError)
        if madvise(middle, self.span_bytes, MADV_WIPEONFORK) != 0:
            PyErr_SetFromErrno(OSError)
        self.is_locked = mlock(middle, self.span_bytes) == 0
        if not self.is_locked:
            if require_lock:
                PyErr_SetFromErrno(OSError)
            not_locked += 1
        # The data end at the upper guard page: one byte too far is a fault, not a leak.
        self.data = middle + self.span_bytes - self.n

    def __dealloc__(self):
        self._wipe()

    cdef int _wipe(self) except -1:
        if self.base != NULL:
            explicit_bzero(self.base + PAGE_BYTES, self.span_bytes)
            munmap(self.base, self.span_bytes + 2 * PAGE_BYTES)
            self.base = NULL
            self.data = NULL
        return 0

    cdef int _check_open(self) except -1:
        if self.base == NULL:
            raise ValueError("this SecretBuffer is closed")
        return 0

    @classmethod
    def random(cls, Py_ssize_t n, *, bint require_lock=False):
        """Return `n` bytes from the system's random generator, written straight into the locked pages.

        Raises:
            ValueError: If n is negative.
            OSError: If the generator fails.
        """
        cdef SecretBuffer result = SecretBuffer(n, require_lock=require_lock)
        cdef size_t done = 0
        cdef ssize_t got
        while done < result.n:
            with nogil:
                got = getrandom(result.data + done, result.n - done, 0)
            if got >= 0:
                done += <size_t>got
            elif errno == EINTR:
                PyErr_CheckSignals()
            else:
                PyErr_SetFromErrno(OSError)
        return result

    @classmethod
    def from_fd(cls, int fd, Py_ssize_t n, *, bint require_lock=False):
        """Read exactly `n` bytes from a file descriptor straight into the locked pages.

        Raises:
            ValueError: If n is negative.
            EOFError: If the file ends before.
            OSError: If reading fails.
        """
        cdef SecretBuffer result = SecretBuffer(n, require_lock=require_lock)
        cdef size_t done = 0
        cdef ssize_t got
        while done < result.n:
            with nogil:
                got = read(fd, result.data + done, result.n - done)
            if got > 0:
                done += <size_t>got
            elif got == 0:
                raise EOFError(f"the file ended after {done} of {n} bytes")
            elif errno == EINTR:
                PyErr_CheckSignals()
            else:
                PyErr_SetFromErrno(OSError)
        return result

    def copy_from(self, source not None):
        """Overwrite the whole contents with those of another buffer of the same length.

        Raises:
            ValueError: If the lengths differ or this buffer is closed.
        """
        cdef Py_buffer view
        self._check_open()
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        try:
            if <size_t>view.len != self.n:
                raise ValueError(f"{view.len} bytes do not fit a SecretBuffer of {self.n} bytes")
            memcpy(self.data, view.buf, self.n)
        finally:
            PyBuffer_Release(&view)

    def slice_copy(self, Py_ssize_t start, Py_ssize_t n):
        """Return a new SecretBuffer with bytes start .. start + n - 1.

        Raises:
            ValueError: If they do not all exist or this buffer is closed.
        """
        cdef SecretBuffer result
        self._check_open()
        if start < 0 or n < 0 or <size_t>start > self.n or <size_t>n > self.n - <size_t>start:
            raise ValueError(f"bytes {start} to {start}+{n} are not inside a SecretBuffer of {self.n} bytes")
        result = SecretBuffer(n)
        memcpy(result.data, self.data + start, <size_t>n)
        return result

    def close(self):
        """Wipe and give back the memory; closing twice is allowed.

        Raises:
            BufferError: If a view of it is still alive.
        """
        if self.exports:
            raise BufferError(f"{self.exports} views of this SecretBuffer are still alive")
        self._wipe()

    @property
    def closed(self):
        """Whether the contents are gone."""
        return self.base == NULL

    @property
    def locked(self):
        """Whether the system keeps the pages out of the swap."""
        return bool(self.is_locked)

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, *exc):
        self.close()

    def __len__(self):
        return <Py_ssize_t>self.n

    def __repr__(self):
        return f"<SecretBuffer of {self.n} bytes{', closed' if self.base == NULL else ''}>"

    def __eq__(self, other):
        """Compare with any buffer, in a time that depends on the lengths alone."""
        cdef Py_buffer view
        if not PyObject_CheckBuffer(other):
            return NotImplemented
        self._check_open()
        PyObject_GetBuffer(other, &view, PyBUF_SIMPLE)
        try:
            return <size_t>view.len == self.n and bool(_equal(self.data, <const uint8_t *>view.buf, self.n))
        finally:
            PyBuffer_Release(&view)

    __hash__ = None

    def __copy__(self):
        raise TypeError("a SecretBuffer is not copied; use slice_copy")

    def __deepcopy__(self, memo):
        raise TypeError("a SecretBuffer is not copied; use slice_copy")

    def __reduce_ex__(self, protocol):
        raise TypeError("a SecretBuffer cannot be pickled")

    def __reduce__(self):
        raise TypeError("a SecretBuffer cannot be pickled")

    def __getbuffer__(self, Py_buffer *view, int flags):
        self._check_open()
        PyBuffer_FillInfo(view, self, self.data, <Py_ssize_t>self.n, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
