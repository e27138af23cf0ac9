"""Make the clicks of several detectors one stream of ticks, in order.

A tagger reads its clock, which is linear in a cell; the reading at the cell's begin is a whole number of ticks and a part
of one, so an hour costs no precision. Ticks are whole numbers that never fall until `flush`, where the clock is set
back; clicks late in a cell wait until no earlier one can come.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport fabs
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove
from numpy.random cimport bitgen_t

from draw cimport draw_normal, draw_prepare, draw_seed, draw_t

draw_prepare()

# Within these no sum of ticks overflows and no double loses what the index of a bin is made of.
cdef double FURTHEST_PS = 1e15
cdef double SHORTEST_TICK_PS = 1e-3
cdef double LONGEST_TICK_PS = 1e6
cdef int64_t LAST_BEGIN_TICK = <int64_t>1 << 62

cdef enum:
    MAX_CHANNELS = 8
    PATTERN_BINS = 256  # the pattern of bin widths repeats


cdef struct Click:
    int64_t tick
    int64_t origin
    uint8_t cause


cdef struct Channel:
    Click* clicks
    Py_ssize_t n
    Py_ssize_t room


cdef inline int64_t whole(double x) noexcept nogil:
    """The floor, without what x86-64's baseline needs for infinite or huge values."""
    cdef int64_t cut = <int64_t>x
    return cut - (cut > x)


@cython.auto_pickle(False)
@cython.final
cdef class Tagger:
    """A time tagger of up to 8 channels.

    Args:
        bit_generator: numpy.random.BitGenerator; four of its words seed what the tagger draws.
        n_channels: 1 to 8.
        tick_ps: Length of a tick, 0.001 to 1e6.
        noise_ps: Standard deviation of the timing noise, from 0.
        bin_edges: float64 (257,), in ticks, rising from 0 to 256: where the bins of a repeating pattern of 256 begin
            and end; None: all are alike.

    Raises:
        ValueError: An argument is not so.
    """

    cdef draw_t _draws
    cdef int _n_channels
    cdef double _tick_ps, _noise_ps
    cdef int64_t _last
    cdef bint _uneven
    cdef double[PATTERN_BINS + 1] _edges
    cdef int[PATTERN_BINS] _first_bin
    cdef Channel[MAX_CHANNELS] _channels

    def __cinit__(self, bit_generator, int n_channels, *, double tick_ps, double noise_ps=0, const double[::1] bin_edges=None):
        cdef int i, j = 0
        if not 1 <= n_channels <= MAX_CHANNELS:
            raise ValueError("n_channels: 1 to 8")
        if not (SHORTEST_TICK_PS <= tick_ps <= LONGEST_TICK_PS):
            raise ValueError(f"tick_ps: {tick_ps} is not within 0.001 to 1e6")
        if not (0 <= noise_ps <= FURTHEST_PS):
            raise ValueError(f"noise_ps: {noise_ps} is not within 0 to 1e15")
        draw_seed(&self._draws, <bitgen_t*>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator"))
        self._n_channels, self._tick_ps, self._noise_ps = n_channels, tick_ps, noise_ps
        self._last = -INT64_MAX
        self._uneven = bin_edges is not None
        if not self._uneven:
            return
        if bin_edges.shape[0] != PATTERN_BINS + 1 or bin_edges[0] != 0 or bin_edges[PATTERN_BINS] != PATTERN_BINS:
            raise ValueError("bin_edges: give 257, from 0 to 256")
        for i in range(PATTERN_BINS):
            if not bin_edges[i + 1] > bin_edges[i]:
                raise ValueError("bin_edges: they must rise")
        for i in range(PATTERN_BINS + 1):
            self._edges[i] = bin_edges[i]
        for i in range(PATTERN_BINS):
            while bin_edges[j + 1] <= i:
                j += 1
            self._first_bin[i] = j

    def __dealloc__(self):
        cdef int c
        for c in range(MAX_CHANNELS):
            free(self._channels[c].clicks)

    @property
    def waiting(self):
        """How many clicks have been added and not merged."""
        return sum(self._channels[c].n for c in range(self._n_channels))

    def tick_at(self, double time_ps, int64_t begin_tick, double begin_ps, double rate):
        """Return the tick of a time since the cell's begin, without skew and noise.

        Args:
            time_ps: The time.
            begin_tick: Whole ticks that the clock shows at the cell's begin.
            begin_ps: What it shows beyond them, 0 to a tick.
            rate: Seconds of the clock per second.

        Raises:
            ValueError: The clock would show more than 1e15 ps before or after the cell's begin, or it begins beyond
                2^62 ticks.
        """
        self._check_begin(begin_tick)
        return self._tick(begin_tick, begin_ps + time_ps * rate)

    def add(
        self,
        int channel,
        const double[::1] time_ps not None,
        const uint8_t[::1] cause not None,
        const int64_t[::1] origin not None,
        int64_t begin_tick,
        double begin_ps,
        double rate,
        double skew_ps,
    ):
        """Register the clicks of a detector.

        Args:
            channel: Which one.
            time_ps: float64 (n,), since the cell's begin, nearly in order.
            cause: uint8 (n,), carried along.
            origin: int64 (n,), carried along.
            begin_tick: Whole ticks that the clock shows at the cell's begin.
            begin_ps: What it shows beyond them, 0 to a tick.
            rate: Seconds of the clock per second.
            skew_ps: Delay of the channel, in the clock's time.

        Raises:
            ValueError: There is no such channel, the arrays differ in length, or a click is more than 1e15 ps from the
                cell's begin; those before it have been registered.
        """
        self._check_begin(begin_tick)
        if not 0 <= channel < self._n_channels:
            raise ValueError(f"channel {channel}: there is none")
        if not (time_ps.shape[0] == cause.shape[0] == origin.shape[0]):
            raise ValueError("time_ps, cause and origin: lengths differ")
        with nogil:
            self._add(&self._channels[channel], time_ps, cause, origin, begin_tick, begin_ps + skew_ps, rate)

    def merge(
        self, int64_t end_tick, int64_t[::1] tick not None, uint8_t[::1] channel not None,
        uint8_t[::1] cause not None, int64_t[::1] origin not None,
    ):
        """Give all clicks before a tick, in order; those of one tick by channel.

        Args:
            end_tick: Where to stop. Clicks that come before it in a later call are given that tick.
            tick: int64, out; at least as long as `waiting`, as all others.
            channel: uint8, out.
            cause: uint8, out.
            origin: int64, out.

        Returns:
            How many were written.

        Raises:
            ValueError: The arrays are too short.
        """
        cdef Py_ssize_t n = 0
        if min(tick.shape[0], channel.shape[0], cause.shape[0], origin.shape[0]) < self.waiting:
            raise ValueError("tick, channel, cause and origin: shorter than what waits")
        with nogil:
            self._merge(end_tick, tick, channel, cause, origin, &n)
        return n

    def flush(self, tick not None, channel not None, cause not None, origin not None):
        """Give all clicks, in order, as `merge` does; later ones may have any tick: the clock is set back."""
        n = self.merge(INT64_MAX, tick, channel, cause, origin)
        self._last = -INT64_MAX
        return n

    cdef int _check_begin(self, int64_t begin_tick) except -1:
        if not -LAST_BEGIN_TICK <= begin_tick <= LAST_BEGIN_TICK:
            raise ValueError(f"begin_tick: {begin_tick} is beyond 2^62")
        return 0

    cdef inline int64_t _tick(self, int64_t begin_tick, double beyond_ps) except? -1 nogil:
        cdef double ticks = beyond_ps / self._tick_ps
        cdef int64_t low, pattern
        cdef int bin
        if not fabs(beyond_ps) <= FURTHEST_PS:
            with gil:
                raise ValueError(f"time: the clock would show {beyond_ps} ps since the cell's begin; at most 1e15")
        if not self._uneven:
            return begin_tick + whole(ticks)
        low = begin_tick & (PATTERN_BINS - 1)
        ticks += low
        pattern = whole(ticks / PATTERN_BINS)
        ticks -= pattern * PATTERN_BINS
        if ticks >= PATTERN_BINS:  # it was less than nothing below 0
            return begin_tick - low + (pattern + 1) * PATTERN_BINS
        bin = self._first_bin[<int>ticks]
        bin += self._edges[bin + 1] <= ticks  # nearly always enough, and no branch to mispredict
        while self._edges[bin + 1] <= ticks:
            bin += 1
        return begin_tick - low + pattern * PATTERN_BINS + bin

    cdef int _add(
        self, Channel* channel, const double[::1] time_ps, const uint8_t[::1] cause, const int64_t[::1] origin,
        int64_t begin_tick, double begin_ps, double rate,
    ) except -1 nogil:
        """Convert, and sort by insertion: only jitter and what waits from before are out of order."""
        cdef Py_ssize_t i, at, n = time_ps.shape[0]
        cdef Click* clicks
        cdef double beyond_ps
        cdef int64_t tick
        if channel.n + n > channel.room:
            clicks = <Click*>realloc(channel.clicks, 2 * (channel.n + n) * sizeof(Click))
            if clicks is NULL:
                with gil:
                    raise MemoryError
            channel.clicks = clicks
            channel.room = 2 * (channel.n + n)
        clicks = channel.clicks
        for i in range(n):
            beyond_ps = begin_ps + time_ps[i] * rate
            if self._noise_ps > 0:
                beyond_ps += self._noise_ps * draw_normal(&self._draws)
            tick = self._tick(begin_tick, beyond_ps)
            if tick < self._last:
                tick = self._last
            at = channel.n
            while at > 0 and clicks[at - 1].tick > tick:
                clicks[at] = clicks[at - 1]
                at -= 1
            clicks[at].tick = tick
            clicks[at].origin = origin[i]
            clicks[at].cause = cause[i]
            channel.n += 1
        return 0

    cdef int _merge(
        self, int64_t end_tick, int64_t[::1] tick, uint8_t[::1] channel, uint8_t[::1] cause, int64_t[::1] origin,
        Py_ssize_t* written,
    ) except -1 nogil:
        cdef Py_ssize_t[MAX_CHANNELS] at
        cdef int64_t[MAX_CHANNELS] head
        cdef int64_t earliest
        cdef Py_ssize_t n = 0
        cdef Click* click
        cdef int c, best
        for c in range(self._n_channels):
            at[c] = 0
            head[c] = self._channels[c].clicks[0].tick if self._channels[c].n else INT64_MAX
        while True:
            best = 0
            earliest = head[0]
            for c in range(1, self._n_channels):
                best = c if head[c] < earliest else best
                earliest = min(earliest, head[c])
            if earliest >= end_tick:
                break
            click = &self._channels[best].clicks[at[best]]
            tick[n] = earliest
            channel[n] = <uint8_t>best
            cause[n] = click.cause
            origin[n] = click.origin
            n += 1
            at[best] += 1
            head[best] = click[1].tick if at[best] < self._channels[best].n else INT64_MAX
        for c in range(self._n_channels):
            self._channels[c].n -= at[c]
            memmove(self._channels[c].clicks, self._channels[c].clicks + at[c], self._channels[c].n * sizeof(Click))
        self._last = max(self._last, end_tick)
        written[0] = n
        return 0
