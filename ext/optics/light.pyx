"""Draw what a prepare-and-measure link sends and what of it reaches the detectors, at a cost that follows detections.

Choices are random access by the number of the pulse: the first 64 bits of the Philox4x32-10 block of a counter that is the
pulse and, above it, the second word of the purpose's key, under its first word. Light is drawn from a stream for each
cell, which such blocks seed, from candidates that come as often as the brightest state needs.

Of Poissonian light a candidate is a point of a Poisson process whose rate, per pulse, is the brightest mean. The place
of the point in its pulse says all: it is a photon if it lies within the mean of the pulse's state, and of the mode in
whose part of that mean it lies. So the photons of a pulse and of its modes are independent and Poissonian, at one
variate for each. Of a known number of photons a candidate is a pulse, at distances that are geometric with the largest
probability of a detection that any such state has; it is kept with the ratio of its state's probability to that.
"""

cimport cython
from libc.math cimport expm1, fabs, log1p, pow
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from draw cimport (
    draw_begin, draw_exponential, draw_exponentials, draw_normal, draw_normals, draw_prepare, draw_t, draw_uniform,
)
from philox cimport philox_many, philox_widest, philox_word, philox_words_plain

import numpy as np

cdef extern from *:
    """
    /* How many of some rising values are not above x: few, so no branch and no vectors. */
    static inline Py_ssize_t rank(const double *value, Py_ssize_t n, double x)
    {
        Py_ssize_t index = 0;
        for (Py_ssize_t k = 0; k < n; k++) {
            index += x >= value[k];
            __asm__("" : "+r"(index));
        }
        return index;
    }
    """
    Py_ssize_t rank(const double *value, Py_ssize_t n, double x) noexcept nogil

draw_prepare()

cdef enum:
    POISSON = 255
    BATCH = 256
    MAX_INTENSITIES = 40
    MAX_BASES = 3
    ALICE = 0  # where keys begin
    BOB = 2
    EVE = 4
    LIGHT = 6
    SPLIT = 255  # the lower half of a field decides

cdef struct Candidate:
    int64_t pulse  # after the first
    Py_ssize_t state
    double place  # uniform, from 0 to the brightest mean or to the largest probability

cdef struct Photons:
    double *time_ps
    uint8_t *detector
    uint8_t *bright
    int64_t *origin
    int64_t first  # pulse
    uint16_t *state
    Py_ssize_t n  # may be more than there is room for
    Py_ssize_t room
    Py_ssize_t begin  # of what is put in order

cdef struct Places:  # where and when photons of a state arrive; all that is looked up for each
    const double *cumulative  # (states, modes), shares
    const double *state_offset_ps
    const double *mode_offset_ps
    const uint8_t *detector
    const uint8_t *bright
    Py_ssize_t n_modes
    double period_ps
    double sigma_ps

cdef struct Words:  # that choose for a batch of pulses
    uint64_t[BATCH] alice
    uint64_t[BATCH] bob
    uint64_t[BATCH] eve

cdef struct Choices:
    uint32_t[MAX_INTENSITIES] threshold  # cumulative 65536ths
    uint8_t[256] chosen  # by fields with that upper half, or SPLIT
    int n

cdef double NOISE_LIMIT = 5.0  # standard deviations at which the noise of the intensity is truncated
cdef double MANY = 30.0  # mean photons from which a pulse's number is not drawn by inversion
cdef double ALMOST_ONE = 1.0 - 2.0 ** -53
cdef double EVE_STEP = 2.0 ** -32
cdef double PULSE = 2.0 ** 32  # a pulse, in the steps in which points of Poissonian light lie
cdef double FURTHEST = 2.0 ** 63


cdef inline Py_ssize_t _draw(uint64_t field, const Choices *choices) noexcept nogil:
    """Return the first index whose threshold is above the 16 bits."""
    cdef Py_ssize_t index = choices.chosen[field >> 8 & 0xFF]
    if index == SPLIT:
        index = 0
        while (field & 0xFFFF) >= choices.threshold[index]:
            index += 1
    return index


cdef inline int seed_cell(draw_t *stream, const uint64_t *key, int64_t cell) except -1 nogil:
    """Begin the stream of a cell."""
    cdef int i, lane
    for i in range(4):
        for lane in range(8):
            stream.s[i][lane] = philox_word(cell << 5 | i << 3 | lane, key)
    draw_begin(stream)
    return 0


cdef inline int put(
    const Places *places, const Candidate *c, double place, double deviation, Photons *out,
) noexcept nogil:
    """Write a photon into its place in time; `place` says which mode it is in."""
    cdef Py_ssize_t mode = rank(places.cumulative + c.state * places.n_modes, places.n_modes - 1, place), j = out.n
    cdef double time = c.pulse * places.period_ps + places.state_offset_ps[c.state] + places.mode_offset_ps[mode]
    time += places.sigma_ps * deviation
    out.n += 1
    if j >= out.room:
        return 0
    while j > out.begin and out.time_ps[j - 1] > time:
        out.time_ps[j], out.detector[j], out.bright[j] = out.time_ps[j - 1], out.detector[j - 1], out.bright[j - 1]
        out.origin[j], out.state[j] = out.origin[j - 1], out.state[j - 1]
        j -= 1
    out.time_ps[j], out.detector[j], out.bright[j] = time, places.detector[mode], places.bright[c.state]
    out.origin[j], out.state[j] = out.first + c.pulse, <uint16_t>c.state
    return 0


def _sort(n, *columns):
    order = np.argsort(columns[0][:n], kind="stable")
    for column in columns:
        column[:n] = column[order]


@cython.auto_pickle(False)
@cython.final
cdef class PulseLight:
    """The light of a link with the given tables; holds nothing that changes, so threads may share it.

    Args:
        tables: See `PulseTables`; copied where it matters.
        portable: Look choices up one by one even where the processor could many at a time; they are the same.

    Raises:
        ValueError: The shapes of the tables do not fit each other, or a share or a probability is out of range.
    """

    cdef Choices intensity, basis, bob
    cdef const double[:, :, ::1] hidden
    cdef const uint8_t[::1] photons, bright, mode_detector
    cdef const double[::1] state_offset_ps, mode_offset_ps
    cdef const double[:, ::1] cumulative
    cdef double[::1] mean, click  # of Poissonian states; chance of a detection in the others
    cdef double brightest, most  # the largest mean that ever is, and the largest chance
    cdef double noise, pattern
    cdef Places places
    cdef bint three_state
    cdef philox_many words

    def __init__(self, tables not None, bint portable=False):
        self.words = philox_words_plain if portable else philox_widest()
        self._choices(&self.intensity, tables.intensity_thresholds, MAX_INTENSITIES)
        self._choices(&self.basis, tables.basis_thresholds, MAX_BASES)
        self._choices(&self.bob, tables.bob_thresholds, MAX_INTENSITIES)
        self.hidden = tables.hidden_cumulative
        self.photons, self.bright, self.mode_detector = tables.photons, tables.bright, tables.mode_detector
        self.state_offset_ps, self.mode_offset_ps = tables.state_offset_ps, tables.mode_offset_ps
        self.places.sigma_ps, self.places.period_ps = tables.pulse_sigma_ps, tables.period_ps
        self.noise, self.pattern, self.three_state = tables.intensity_noise, tables.pattern_effect, tables.three_state
        self.cumulative = np.cumsum(tables.shares, axis=1)
        self._verify()
        self._place()
        self.mean, self.click = np.zeros((2, self.photons.shape[0]))
        if not np.all(np.asarray(tables.shares) >= 0) or self._prepare_states() < 0:
            raise ValueError("shares: below 0, above 1 in total for a photon, or not finite")

    cdef int _choices(self, Choices *choices, const uint32_t[::1] thresholds, Py_ssize_t most) except -1:
        cdef Py_ssize_t k
        cdef uint32_t field
        if not 1 <= thresholds.shape[0] <= most:
            raise ValueError("thresholds: give 1 to 40 intensities, 1 to 3 bases and 1 to 40 of the receiver")
        choices.n = <int>thresholds.shape[0]
        for k in range(thresholds.shape[0]):
            choices.threshold[k] = thresholds[k]
        if thresholds[k] != 65536:
            raise ValueError("thresholds: the last is 65536")
        k = 0
        for field in range(256):
            while field << 8 >= choices.threshold[k]:
                k += 1
            choices.chosen[field] = <uint8_t>k if choices.threshold[k] >= (field + 1) << 8 else SPLIT
        return 0

    cdef int _verify(self) except -1:
        cdef Py_ssize_t states = self.hidden.shape[0] * self.hidden.shape[1] * self.hidden.shape[2]
        cdef Py_ssize_t modes = self.mode_detector.shape[0]
        if self.hidden.shape[0] != 6 * self.intensity.n or self.hidden.shape[1] != self.bob.n:
            raise ValueError("hidden_cumulative: not 6 choices for each intensity, or not the receiver's bases")
        if not 1 <= states <= 65536 or modes == 0:
            raise ValueError("there must be 1 to 65536 states and a mode")
        if (
            self.photons.shape[0] != states or self.bright.shape[0] != states
            or self.state_offset_ps.shape[0] != states or self.mode_offset_ps.shape[0] != modes
            or self.cumulative.shape[0] != states or self.cumulative.shape[1] != modes
        ):
            raise ValueError("photons, bright, state_offset_ps, mode_offset_ps or shares: wrong shape")
        if not 0 <= self.noise * NOISE_LIMIT < 1 or not -1 <= self.pattern < 1e3:
            raise ValueError("intensity_noise or pattern_effect out of range")
        return 0

    cdef int _place(self) except -1:
        self.places.n_modes = self.cumulative.shape[1]
        self.places.cumulative = &self.cumulative[0, 0]
        self.places.state_offset_ps, self.places.mode_offset_ps = &self.state_offset_ps[0], &self.mode_offset_ps[0]
        self.places.detector, self.places.bright = &self.mode_detector[0], &self.bright[0]
        return 0

    cdef Py_ssize_t _prepare_states(self) except? -1:
        """Set what follows from the shares alone; return -1 if they cannot be."""
        cdef Py_ssize_t s, last = self.cumulative.shape[1] - 1
        cdef double total, factor = (1 + NOISE_LIMIT * self.noise) * (1 + max(self.pattern, 0.0))
        self.brightest = self.most = 0.0
        for s in range(self.photons.shape[0]):
            total = self.cumulative[s, last]
            if not total < 1e9 or (self.photons[s] != POISSON and total > 1 + 1e-9):
                return -1
            if self.photons[s] == POISSON:
                self.mean[s] = total
                self.brightest = max(self.brightest, total * factor)
            else:
                total = min(total, ALMOST_ONE)
                self.click[s] = -expm1(self.photons[s] * log1p(-total))
                self.most = max(self.most, self.click[s])
        return 0

    cdef inline Py_ssize_t _choice(self, uint64_t word) except -1 nogil:
        cdef Py_ssize_t basis = _draw(word >> 16, &self.basis)
        cdef Py_ssize_t bit = 0 if self.three_state and basis == 1 else (word >> 32) & 1
        return (_draw(word, &self.intensity) * 3 + basis) * 2 + bit

    cdef inline Py_ssize_t _state(self, const Words *words, Py_ssize_t i) except -1 nogil:
        cdef Py_ssize_t choice = self._choice(words.alice[i])
        cdef Py_ssize_t k, bob = 0, hidden = 0
        cdef double eve
        if self.hidden.shape[1] > 1:
            bob = _draw(words.bob[i], &self.bob)
        if self.hidden.shape[2] > 1:
            eve = <double>(words.eve[i] >> 32) * EVE_STEP
            for k in range(self.hidden.shape[2] - 1):
                hidden += eve >= self.hidden[choice, bob, k]
        return (choice * self.hidden.shape[1] + bob) * self.hidden.shape[2] + hidden

    cdef Py_ssize_t _points(
        self, draw_t *stream, Candidate *found, uint64_t *position, int64_t n_pulses,
    ) except -1 nogil:
        """Find the next points of the brightest light; return how many, less than a batch when the pulses end."""
        cdef double[BATCH] gaps
        cdef double steps = PULSE / self.brightest, mean_per_step = self.brightest / PULSE
        cdef uint64_t end = <uint64_t>n_pulses << 32, at = position[0]
        cdef Py_ssize_t i
        draw_exponentials(stream, gaps, BATCH)
        for i in range(BATCH):
            at += <uint64_t>min(gaps[i] * steps + 0.5, FURTHEST)
            if at >= end:
                return i
            found[i].pulse, found[i].place = at >> 32, <double><uint32_t>at * mean_per_step
        position[0] = at
        return BATCH

    cdef int _look_up(
        self, const Candidate *found, Py_ssize_t count, int64_t first, const uint64_t *keys, Words *out,
    ) except -1 nogil:
        """Look up what chooses the states of some candidates, at most a batch."""
        cdef int64_t[BATCH] pulse
        cdef Py_ssize_t i
        for i in range(count):
            pulse[i] = first + found[i].pulse
        self.words(pulse, keys + ALICE, out.alice, count)
        if self.hidden.shape[1] > 1:
            self.words(pulse, keys + BOB, out.bob, count)
        if self.hidden.shape[2] > 1:
            self.words(pulse, keys + EVE, out.eve, count)
        return 0

    cdef int _vary(
        self, draw_t *stream, Candidate *found, Py_ssize_t count, int64_t first, const uint64_t *keys,
        int64_t *pulse, double *factor,
    ) except -1 nogil:
        """Scale places as the noise of the source and the pulse before scale the mean; one pulse has one factor."""
        cdef double[BATCH] deviations
        cdef int64_t[BATCH] before
        cdef uint64_t[BATCH] words
        cdef double deviation
        cdef Py_ssize_t i
        draw_normals(stream, deviations, count)
        for i in range(count):
            before[i] = max(first + found[i].pulse - 1, 0)
        if self.pattern != 0:
            self.words(before, keys + ALICE, words, count)
        for i in range(count):
            if found[i].pulse != pulse[0]:
                deviation = deviations[i]
                while fabs(deviation) > NOISE_LIMIT:
                    deviation = draw_normal(stream)
                pulse[0], factor[0] = found[i].pulse, 1 + self.noise * deviation
                if self.pattern != 0:  # without another branch: nothing could guess it
                    factor[0] *= 1 + self.pattern * (first + pulse[0] > 0 and _draw(words[i], &self.intensity) == 0)
            found[i].place /= factor[0]
        return 0

    cdef int _poissonian(
        self, draw_t *stream, const uint64_t *keys, int64_t first, int64_t n_pulses, Photons *out,
    ) except -1 nogil:
        """Draw the photons of Poissonian states."""
        cdef Candidate[BATCH] found
        cdef Words words
        cdef double[BATCH] deviations
        cdef uint64_t position = 0
        cdef int64_t pulse, varied_pulse = -1
        cdef double place, factor = 1.0
        cdef const double *mean = &self.mean[0]
        cdef Places places = self.places  # copies of what no store can change lie in registers
        cdef Photons photons = out[0]
        cdef Py_ssize_t count = BATCH, i, kept, state
        while count == BATCH:
            count = self._points(stream, found, &position, n_pulses)
            self._look_up(found, count, first, keys, &words)
            if self.noise > 0 or self.pattern != 0:
                self._vary(stream, found, count, first, keys, &varied_pulse, &factor)
            kept = 0
            for i in range(count):
                pulse, place, state = found[i].pulse, found[i].place, self._state(&words, i)
                found[kept].pulse, found[kept].state, found[kept].place = pulse, state, place
                kept += place < mean[state]  # no branch: nothing could guess it
            draw_normals(stream, deviations, kept)
            for i in range(kept):
                put(&places, found + i, found[i].place, deviations[i], &photons)
        out[0] = photons
        return 0

    cdef int _counted(
        self, draw_t *stream, const uint64_t *keys, int64_t first, int64_t n_pulses, Photons *out,
    ) except -1 nogil:
        """Draw the photons of states of a known number."""
        cdef Candidate c
        cdef Words words
        cdef int64_t pulse = 0, photons
        cdef double gap, total, pulses_per_candidate = -1 / log1p(-self.most)
        while True:
            gap = draw_exponential(stream) * pulses_per_candidate
            if gap >= n_pulses - pulse:
                return 0
            c.pulse = pulse + <int64_t>gap
            pulse = c.pulse + 1
            self._look_up(&c, 1, first, keys, &words)
            c.state = self._state(&words, 0)
            c.place = draw_uniform(stream) * self.most
            if c.place >= self.click[c.state]:
                continue
            total = self.cumulative[c.state, self.cumulative.shape[1] - 1]
            for photons in range(self._number(stream, &c)):
                put(&self.places, &c, draw_uniform(stream) * total, draw_normal(stream), out)

    cdef int64_t _number(self, draw_t *stream, const Candidate *c) except -1 nogil:
        """Return how many detectable photons an accepted pulse of a known number has."""
        cdef uint8_t photons = self.photons[c.state], k
        cdef double share = min(self.cumulative[c.state, self.cumulative.shape[1] - 1], ALMOST_ONE)
        cdef double u = c.place, odds = share / (1 - share)
        cdef double chance = photons * share * pow(1 - share, photons - 1.0)
        cdef int64_t n = 0
        if photons * share > MANY:
            while n == 0:
                for k in range(photons):
                    n += draw_uniform(stream) < share
            return n
        n = 1
        while u >= chance and n < photons:  # by inversion of the number that accepted it
            u -= chance
            chance *= odds * (photons - n) / (n + 1)
            n += 1
        return n

    def arrivals(
        self, const uint64_t[:, ::1] keys not None, int64_t cell, int64_t first_pulse, int64_t n_pulses,
        double[::1] time_ps not None, uint8_t[::1] detector not None, uint8_t[::1] bright not None,
        int64_t[::1] origin not None, uint16_t[::1] state not None,
    ):
        """Draw the detectable photons of a range of pulses, in the order of time.

        Args:
            keys: Philox keys of the sender's, the receiver's and the eavesdropper's choices and of the light.
            cell: Number of the cell, 0 to 2^58 - 1: which light is drawn.
            first_pulse: Number of the first pulse.
            n_pulses: How many, below 2^31.
            time_ps: Output: after the mean arrival of the first pulse at a mode without offset.
            detector: Output: where.
            bright: Output: 1 for light that makes any detector click.
            origin: Output: number of the pulse.
            state: Output: of the pulse, see `PulseTables`.

        Returns:
            How many there are. If that is more than the arrays hold, their content is of no use: call again with arrays
            that hold as many.

        Raises:
            ValueError: The arrays differ in length, or the cell or the range of pulses is out of range.
        """
        cdef draw_t stream
        cdef Photons out
        cdef Py_ssize_t capacity = time_ps.shape[0]
        if keys.shape[0] != 4 or keys.shape[1] != 2:
            raise ValueError("keys: give four of two words")
        if (
            detector.shape[0] != capacity or bright.shape[0] != capacity or origin.shape[0] != capacity
            or state.shape[0] != capacity
        ):
            raise ValueError("the outputs differ in length")
        if first_pulse < 0 or not 0 <= n_pulses < 1 << 31 or not 0 <= cell < 1 << 58:
            raise ValueError("cell, first_pulse or n_pulses out of range")
        out.n, out.begin, out.room, out.first = 0, 0, capacity, first_pulse
        if capacity:
            out.time_ps, out.detector, out.bright = &time_ps[0], &detector[0], &bright[0]
            out.origin, out.state = &origin[0], &state[0]
        with nogil:
            seed_cell(&stream, &keys[LIGHT // 2, 0], cell)
            if self.brightest > 0:
                self._poissonian(&stream, &keys[0, 0], first_pulse, n_pulses, &out)
            out.begin = out.n
            if self.most > 0:
                self._counted(&stream, &keys[0, 0], first_pulse, n_pulses, &out)
        if self.brightest > 0 and self.most > 0 and out.n <= capacity:
            _sort(out.n, *map(np.asarray, (time_ps, detector, bright, origin, state)))
        return out.n

    cdef int _words(
        self, bint receiver, const uint64_t[::1] key, int64_t first, const int64_t[::1] pulse, uint8_t[::1] out,
    ) except -1 nogil:
        """Write the choices of some pulses; of those from `first` on if none are given."""
        cdef int64_t[BATCH] at
        cdef uint64_t[BATCH] word
        cdef Py_ssize_t i, count, begin = 0
        while begin < out.shape[0]:
            count = min(<Py_ssize_t>BATCH, out.shape[0] - begin)
            for i in range(count):
                at[i] = first + begin + i if pulse is None else pulse[begin + i]
            self.words(at, &key[0], word, count)
            for i in range(count):
                out[begin + i] = _draw(word[i], &self.bob) if receiver else self._choice(word[i])
            begin += count
        return 0

    cdef int _choose(self, bint receiver, const uint64_t[::1] key, pulses, uint8_t[::1] out) except -1:
        cdef const int64_t[::1] listed = None
        cdef int64_t first = 0
        if isinstance(pulses, np.ndarray):
            listed = pulses
        else:
            first = pulses
        if key.shape[0] != 2:
            raise ValueError("key: give two words")
        if listed is not None and listed.shape[0] != out.shape[0]:
            raise ValueError("pulses and output differ in length")
        with nogil:
            self._words(receiver, key, first, listed, out)
        return 0

    def prepare(self, const uint64_t[::1] key not None, pulses not None, uint8_t[::1] choice not None):
        """Look up what the sender chooses: (intensity * 3 + basis) * 2 + bit.

        Args:
            key: Philox key of the sender's choices.
            pulses: Number of the first pulse of a range, or int64 (n,), any pulses in any order.
            choice: Output; its length is that of the range.

        Raises:
            ValueError: Wrong shapes.
        """
        self._choose(False, key, pulses, choice)

    def measure(self, const uint64_t[::1] key not None, pulses not None, uint8_t[::1] basis not None):
        """Look up the basis to which the receiver's switch is set: `prepare` for the receiver's key.

        Args:
            key: Philox key of the receiver's choices.
            pulses: Number of the first pulse of a range, or int64 (n,), any pulses in any order.
            basis: Output; its length is that of the range.

        Raises:
            ValueError: Wrong shapes.
        """
        self._choose(True, key, pulses, basis)
