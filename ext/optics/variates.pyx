"""The stream of variates that the optics' kernels draw in line, for their tests and oracles."""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from numpy.random cimport bitgen_t

from draw cimport (
    draw_exponential, draw_exponentials_by, draw_here, draw_how_t, draw_normal, draw_normals_by, draw_plain,
    draw_prepare, draw_seed, draw_t, draw_uniform,
)

draw_prepare()


@cython.auto_pickle(False)
@cython.final
cdef class Variates:
    """Draws like a `numpy.random.Generator`, other numbers.

    Args:
        bit_generator: A NumPy BitGenerator; 32 of its words seed the stream.
        portable: Draw one by one even where the processor could many at a time; they are the same.
    """

    cdef draw_t _stream
    cdef const draw_how_t *_how

    def __init__(self, bit_generator not None, bint portable=False):
        self._how = &draw_plain if portable else draw_here
        draw_seed(&self._stream, <bitgen_t *>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator"))

    def random(self):
        """Return a number from 0 to 1, never 1, uniform."""
        return draw_uniform(&self._stream)

    def standard_normal(self):
        """Return a number of mean 0 and variance 1, Gaussian."""
        return draw_normal(&self._stream)

    def standard_exponential(self):
        """Return a number of mean 1, exponential."""
        return draw_exponential(&self._stream)

    def fill(self, str law not None, double[::1] out not None):
        """Draw many.

        Args:
            law: "random", "standard_normal" or "standard_exponential".
            out: Output.

        Raises:
            ValueError: There is no such law.
        """
        cdef Py_ssize_t i
        if law not in ("random", "standard_normal", "standard_exponential"):
            raise ValueError(f"law {law!r}: random, standard_normal or standard_exponential")
        if out.shape[0] == 0:
            return
        if law == "standard_normal":
            draw_normals_by(self._how, &self._stream, &out[0], out.shape[0])
        elif law == "standard_exponential":
            draw_exponentials_by(self._how, &self._stream, &out[0], out.shape[0])
        else:
            for i in range(out.shape[0]):
                out[i] = draw_uniform(&self._stream)
