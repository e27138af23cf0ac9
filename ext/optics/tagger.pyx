"""Make the clicks of several detectors one stream of ticks, in order.

A tagger reads its clock, which is linear in a cell; the reading at the cell's begin is a whole number of ticks and a part
of one, so an hour costs no precision. Ticks are whole numbers that never fall until `flush`, where the clock is set
back; clicks late in a cell wait until no earlier one can come.

Clicks come nearly in order, so that each is put into its place as it comes; if that ever is far, as with long skews at
high rates, all are sorted when they are given.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport INFINITY, fabs
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memmove
from numpy.random cimport bitgen_t

from draw cimport draw_normals, draw_prepare, draw_seed, draw_t
from rounding cimport whole

draw_prepare()

# Within these no sum of ticks overflows and no double loses what the index of a bin is made of.
cdef double FURTHEST_PS = 1e15
cdef double SHORTEST_TICK_PS = 1e-3
cdef double LONGEST_TICK_PS = 1e6
cdef int64_t LAST_BEGIN_TICK = <int64_t>1 << 62

cdef enum:
    MAX_CHANNELS = 8
    PATTERN_BINS = 256  # the pattern of bin widths repeats
    BATCH = 256
    FAR = 64  # clicks that one may pass on its way to its place


cdef struct Click:
    int64_t tick
    int64_t origin
    uint32_t number  # of the click, from 2^32 on from 0 again
    uint8_t channel
    uint8_t cause


cdef struct Bins:  # of an uneven pattern, those that lie in a tick of even ones
    double second  # where the second and the third begin in the pattern, in ticks; infinite if they are later
    double third
    int64_t first


cdef inline bint _before(int64_t tick, uint8_t channel, const Click* other) noexcept nogil:
    return tick < other.tick or (tick == other.tick and channel < other.channel)


cdef int _compare(const void* a, const void* b) noexcept nogil:
    """Say which click comes first: by tick, channel and the order in which they came."""
    cdef const Click* one = <const Click*>a
    cdef const Click* other = <const Click*>b
    if one.tick == other.tick and one.channel == other.channel:
        return 1 if <int32_t>(one.number - other.number) > 0 else -1
    return -1 if _before(one.tick, one.channel, other) else 1


@cython.auto_pickle(False)
@cython.final
cdef class Tagger:
    """A time tagger of up to 8 channels.

    Args:
        bit_generator: numpy.random.BitGenerator; 32 of its words seed what the tagger draws.
        skew_ps: For each of 1 to 8 channels, its delay in the clock's time.
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
    cdef Bins[PATTERN_BINS] _bins
    cdef double[MAX_CHANNELS] _skew_ps
    cdef Click* _clicks
    cdef Py_ssize_t _n, _room
    cdef uint32_t _added
    cdef bint _in_order

    def __cinit__(self, bit_generator, skew_ps, *, double tick_ps, double noise_ps=0, const double[::1] bin_edges=None):
        cdef int i, j = 0
        if not 1 <= len(skew_ps) <= MAX_CHANNELS:
            raise ValueError("skew_ps: of 1 to 8 channels")
        if not (SHORTEST_TICK_PS <= tick_ps <= LONGEST_TICK_PS):
            raise ValueError(f"tick_ps: {tick_ps} is not within 0.001 to 1e6")
        if not (0 <= noise_ps <= FURTHEST_PS):
            raise ValueError(f"noise_ps: {noise_ps} is not within 0 to 1e15")
        draw_seed(&self._draws, <bitgen_t*>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator"))
        self._n_channels, self._tick_ps, self._noise_ps = len(skew_ps), tick_ps, noise_ps
        for i in range(self._n_channels):
            self._skew_ps[i] = skew_ps[i]
        self._last, self._in_order = -INT64_MAX, True
        self._uneven = bin_edges is not None
        if not self._uneven:
            return
        if bin_edges.shape[0] != PATTERN_BINS + 1 or bin_edges[0] != 0 or bin_edges[PATTERN_BINS] != PATTERN_BINS:
            raise ValueError("bin_edges: give 257, from 0 to 256")
        for i in range(PATTERN_BINS):
            if not bin_edges[i + 1] > bin_edges[i]:
                raise ValueError("bin_edges: they must rise")
        for i in range(PATTERN_BINS):
            while bin_edges[j + 1] <= i:
                j += 1
            self._bins[i].first = j
            self._bins[i].second = bin_edges[j + 1]
            self._bins[i].third = bin_edges[j + 2] if j + 2 <= PATTERN_BINS else INFINITY
        for i in range(PATTERN_BINS + 1):
            self._edges[i] = bin_edges[i]

    def __dealloc__(self):
        free(self._clicks)

    @property
    def waiting(self):
        """How many clicks have been added and not merged."""
        return self._n

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
        const double[::1] time_ps not None,
        const uint8_t[::1] channel not None,
        const uint8_t[::1] cause not None,
        const int64_t[::1] origin not None,
        int64_t begin_tick,
        double begin_ps,
        double rate,
    ):
        """Register clicks.

        Args:
            time_ps: float64 (n,), since the cell's begin, nearly in order.
            channel: uint8 (n,), where they come in.
            cause: uint8 (n,), carried along.
            origin: int64 (n,), carried along.
            begin_tick: Whole ticks that the clock shows at the cell's begin.
            begin_ps: What it shows beyond them, 0 to a tick.
            rate: Seconds of the clock per second.

        Raises:
            ValueError: There is no such channel, the arrays differ in length, or a click is more than 1e15 ps from the
                cell's begin; some before it may have been registered.
        """
        self._check_begin(begin_tick)
        if not (time_ps.shape[0] == channel.shape[0] == cause.shape[0] == origin.shape[0]):
            raise ValueError("time_ps, channel, cause and origin: lengths differ")
        with nogil:
            self._add(time_ps, channel, cause, origin, begin_tick, begin_ps, rate)

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
        if not fabs(beyond_ps) <= FURTHEST_PS:
            with gil:
                raise ValueError(f"time: the clock would show {beyond_ps} ps since the cell's begin; at most 1e15")
        return begin_tick + self._bin(begin_tick, beyond_ps / self._tick_ps)

    cdef inline int64_t _bin(self, int64_t begin_tick, double ticks) noexcept nogil:
        """Return how many bins after that of the cell's begin a time is, in ticks."""
        cdef int64_t low, pattern, whole_ticks, bin
        cdef const Bins* bins
        if not self._uneven:
            return whole(ticks)
        low = begin_tick & (PATTERN_BINS - 1)
        ticks += low
        whole_ticks = whole(ticks)
        bins = self._bins + (whole_ticks & (PATTERN_BINS - 1))
        pattern = whole_ticks & -PATTERN_BINS
        ticks -= pattern
        if ticks >= PATTERN_BINS:  # it was less than nothing below 0
            return pattern + PATTERN_BINS - low
        bin = bins.first + (bins.second <= ticks) + (bins.third <= ticks)
        while bin > bins.first + 1 and self._edges[bin + 1] <= ticks:  # of bins so narrow that a tick has more of them
            bin += 1
        return pattern + bin - low

    cdef int _make_room(self, Py_ssize_t n) except -1 nogil:
        cdef Click* grown
        if self._n + n > self._room:
            grown = <Click*>realloc(self._clicks, 2 * (self._n + n) * sizeof(Click))
            if grown is NULL:
                with gil:
                    raise MemoryError
            self._clicks, self._room = grown, 2 * (self._n + n)
        return 0

    cdef int _add(
        self, const double[::1] time_ps, const uint8_t[::1] channel, const uint8_t[::1] cause,
        const int64_t[::1] origin, int64_t begin_tick, double begin_ps, double rate,
    ) except -1 nogil:
        cdef double[MAX_CHANNELS] begins_ps
        cdef double[BATCH] beyond_ps, noise
        cdef int64_t[BATCH] tick
        cdef Py_ssize_t first = 0, i, n
        cdef int c, wrong
        self._make_room(time_ps.shape[0])
        for c in range(self._n_channels):
            begins_ps[c] = begin_ps + self._skew_ps[c]
        while first < time_ps.shape[0]:
            n = min(BATCH, time_ps.shape[0] - first)
            wrong = 0
            for i in range(n):
                wrong |= channel[first + i] >= self._n_channels
                beyond_ps[i] = begins_ps[channel[first + i] & (MAX_CHANNELS - 1)] + time_ps[first + i] * rate
            if self._noise_ps > 0:
                draw_normals(&self._draws, noise, n)
                for i in range(n):
                    beyond_ps[i] += self._noise_ps * noise[i]
            for i in range(n):
                wrong |= not fabs(beyond_ps[i]) <= FURTHEST_PS
            if wrong:
                self._refuse(&channel[first], beyond_ps, n)
            for i in range(n):
                beyond_ps[i] /= self._tick_ps
            for i in range(n):
                tick[i] = begin_tick + self._bin(begin_tick, beyond_ps[i])
            self._insert_all(tick, n, &channel[first], &cause[first], &origin[first])
            first += n
        return 0

    cdef int _refuse(self, const uint8_t* channel, const double* beyond_ps, Py_ssize_t n) except -1 nogil:
        """Say what is wrong with the first of some clicks that cannot be registered."""
        cdef Py_ssize_t i
        for i in range(n):
            if channel[i] >= self._n_channels:
                with gil:
                    raise ValueError(f"channel {channel[i]}: there is none")
            self._tick(0, beyond_ps[i])
        return 0

    cdef int _insert_all(
        self, const int64_t* ticks, Py_ssize_t n, const uint8_t* channel, const uint8_t* cause, const int64_t* origin,
    ) noexcept nogil:
        """Put clicks into their places: jitter, skew and what waits from before make that another than the last."""
        cdef Click* clicks = self._clicks
        cdef Py_ssize_t at, i, end = self._n
        cdef int64_t tick
        for i in range(n):
            tick, at = max(ticks[i], self._last), end
            while self._in_order and at > 0 and _before(tick, channel[i], clicks + at - 1):
                clicks[at] = clicks[at - 1]
                at -= 1
            self._in_order &= end - at <= FAR
            clicks[at].tick, clicks[at].origin, clicks[at].number = tick, origin[i], self._added + <uint32_t>i
            clicks[at].channel, clicks[at].cause = channel[i], cause[i]
            end += 1
        self._added += <uint32_t>n
        self._n = end
        return 0

    cdef int _merge(
        self, int64_t end_tick, int64_t[::1] tick, uint8_t[::1] channel, uint8_t[::1] cause, int64_t[::1] origin,
        Py_ssize_t* written,
    ) except -1 nogil:
        cdef const Click* clicks = self._clicks
        cdef Py_ssize_t n = 0
        if not self._in_order:
            qsort(self._clicks, self._n, sizeof(Click), _compare)
            self._in_order = True
        while n < self._n and clicks[n].tick < end_tick:
            tick[n], channel[n] = clicks[n].tick, clicks[n].channel
            cause[n], origin[n] = clicks[n].cause, clicks[n].origin
            n += 1
        self._n -= n
        if self._n:
            memmove(self._clicks, clicks + n, self._n * sizeof(Click))
        self._last = max(self._last, end_tick)
        written[0] = n
        return 0
