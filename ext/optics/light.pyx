"""Draw what a prepare-and-measure link sends and what of it reaches the detectors, at a cost that follows detections.

Choices are random access by the number of the pulse: word `pulse % 4` of the Philox4x64-10 block of counter
(pulse // 4, 0, 0, 0) and the key of the purpose. Light is drawn in the order of time from one bit generator: only
candidate pulses are looked at, at distances that are geometric with the largest probability of a detection that any
state has, and a candidate of another state is kept with the ratio of its probability to that.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport exp, expm1, fabs, log1p, pow
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from numpy.random cimport bitgen_t
from numpy.random.c_distributions cimport random_poisson

from draw cimport draw_exponential, draw_normal, draw_prepare, draw_seed, draw_t, draw_uniform
from philox cimport philox, philox_word

import numpy as np

draw_prepare()

cdef enum:
    POISSON = 255
    BATCH = 256
    ALICE = 0  # where keys begin
    BOB = 2
    EVE = 4

cdef struct Draws:
    draw_t stream
    bitgen_t *bits  # for laws that are drawn too seldom to be in line

cdef struct Candidate:
    int64_t pulse  # after the first
    Py_ssize_t state
    double u  # uniform from 0 to the candidates' probability
    double weight  # what makes the chance of n photons that of n + 1: the mean, or the odds of one photon
    double single  # chance of one photon

cdef double NOISE_LIMIT = 5.0  # standard deviations at which the noise of the intensity is truncated
cdef double MANY = 30.0  # mean photons from which a pulse's number is not drawn by inversion
cdef double ALMOST_ONE = 1.0 - 2.0 ** -53
cdef double EVE_STEP = 2.0 ** -32


cdef inline Py_ssize_t _draw(uint64_t field, const uint32_t[::1] thresholds) except -1 nogil:
    """Return the first index whose threshold is above the 16 bits; without a branch that a processor must guess."""
    cdef Py_ssize_t k, index = 0
    for k in range(thresholds.shape[0] - 1):
        index += (field & 0xFFFF) >= thresholds[k]
    return index


cdef Py_ssize_t _skip(
    Draws *draws, Candidate *found, double pulses_per_candidate, int64_t *position, int64_t n_pulses,
) except -1 nogil:
    """Find the next candidates from a position on; return how many, less than a batch when the pulses end."""
    cdef Py_ssize_t count = 0
    cdef double gap
    while count < BATCH:
        gap = draw_exponential(&draws.stream) * pulses_per_candidate
        if gap >= n_pulses - position[0]:
            break
        found[count].pulse = position[0] + <int64_t>gap
        position[0] = found[count].pulse + 1
        count += 1
    return count


cdef int64_t _many_photons(Draws *draws, uint8_t photons, double mean, double share) except -1 nogil:
    """Return the number of detectable photons of a pulse of many, which is not 0."""
    cdef int64_t n = 0
    cdef uint8_t k
    while n == 0:
        if photons == POISSON:
            n = random_poisson(draws.bits, mean)
        else:
            for k in range(photons):
                n += draw_uniform(&draws.stream) < share
    return n


@cython.auto_pickle(False)
@cython.final
cdef class PulseLight:
    """The light of a link with the given tables; holds nothing that changes, so threads may share it.

    Args:
        tables: See `PulseTables`; copied where it matters.

    Raises:
        ValueError: The shapes of the tables do not fit each other, or a share or a probability is out of range.
    """

    cdef const uint32_t[::1] intensity, basis, bob
    cdef const double[:, :, ::1] hidden
    cdef const uint8_t[::1] photons, bright, mode_detector
    cdef const double[::1] state_offset_ps, mode_offset_ps
    cdef double[:, ::1] cumulative
    cdef double[::1] click, single, weight
    cdef double bound, sigma_ps, period_ps, noise, pattern
    cdef bint three_state

    def __init__(self, tables not None):
        self.intensity, self.basis = tables.intensity_thresholds, tables.basis_thresholds
        self.bob, self.hidden = tables.bob_thresholds, tables.hidden_cumulative
        self.photons, self.bright, self.mode_detector = tables.photons, tables.bright, tables.mode_detector
        self.state_offset_ps, self.mode_offset_ps = tables.state_offset_ps, tables.mode_offset_ps
        self.sigma_ps, self.period_ps = tables.pulse_sigma_ps, tables.period_ps
        self.noise, self.pattern, self.three_state = tables.intensity_noise, tables.pattern_effect, tables.three_state
        self.cumulative = np.cumsum(tables.shares, axis=1)
        self._verify()
        self.click, self.single, self.weight = np.empty((3, self.photons.shape[0]))
        if not np.all(np.asarray(tables.shares) >= 0) or self._prepare_states() < 0:
            raise ValueError("shares: below 0, above 1 in total for a photon, or not finite")

    cdef int _verify(self) except -1:
        cdef Py_ssize_t states = self.hidden.shape[0] * self.hidden.shape[1] * self.hidden.shape[2]
        cdef Py_ssize_t modes = self.mode_detector.shape[0]
        if self.hidden.shape[0] != 6 * self.intensity.shape[0] or self.hidden.shape[1] != self.bob.shape[0]:
            raise ValueError("hidden_cumulative: not 6 choices for each intensity, or not the receiver's bases")
        if not 1 <= self.basis.shape[0] <= 3 or not 1 <= self.intensity.shape[0] <= 40 or not self.bob.shape[0]:
            raise ValueError("thresholds: give 1 to 40 intensities, 1 to 3 bases and at least one of the receiver")
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

    cdef Py_ssize_t _prepare_states(self) except? -1:
        """Set what follows from the shares alone; return -1 if they cannot be."""
        cdef Py_ssize_t s
        cdef double total, brightest
        self.bound = 0.0
        for s in range(self.photons.shape[0]):
            total = self.cumulative[s, self.cumulative.shape[1] - 1]
            if not total < 1e9 or (self.photons[s] != POISSON and total > 1 + 1e-9):
                return -1
            if self.photons[s] == POISSON:
                brightest = total * (1 + NOISE_LIMIT * self.noise) * (1 + max(self.pattern, 0.0))
                self.click[s], self.single[s], self.weight[s] = -expm1(-total), total * exp(-total), total
                self.bound = max(self.bound, -expm1(-brightest))
            else:
                total = min(total, ALMOST_ONE)
                self.click[s] = -expm1(self.photons[s] * log1p(-total))
                self.single[s] = self.photons[s] * total * pow(1 - total, self.photons[s] - 1.0)
                self.weight[s] = total / (1 - total)
                self.bound = max(self.bound, self.click[s])
        return 0

    cdef inline Py_ssize_t _choice(self, uint64_t word) except -1 nogil:
        cdef Py_ssize_t basis = _draw(word >> 16, self.basis)
        cdef Py_ssize_t bit = 0 if self.three_state and basis == 1 else (word >> 32) & 1
        return (_draw(word, self.intensity) * 3 + basis) * 2 + bit

    cdef inline Py_ssize_t _state(self, int64_t pulse, const uint64_t *keys) except -1 nogil:
        cdef Py_ssize_t choice = self._choice(philox_word(pulse, keys + ALICE))
        cdef Py_ssize_t k, bob = 0, hidden = 0
        cdef double eve
        if self.hidden.shape[1] > 1:
            bob = _draw(philox_word(pulse, keys + BOB), self.bob)
        if self.hidden.shape[2] > 1:
            eve = <double>(philox_word(pulse, keys + EVE) >> 32) * EVE_STEP
            for k in range(self.hidden.shape[2] - 1):
                hidden += eve >= self.hidden[choice, bob, k]
        return (choice * self.hidden.shape[1] + bob) * self.hidden.shape[2] + hidden

    cdef inline double _factor(self, Draws *draws, int64_t pulse, const uint64_t *keys) except? -1 nogil:
        """Return what the noise of the source and the pulse before make of a pulse's mean."""
        cdef double factor = 1.0, deviation
        if self.noise > 0:
            deviation = draw_normal(&draws.stream)
            while fabs(deviation) > NOISE_LIMIT:
                deviation = draw_normal(&draws.stream)
            factor += self.noise * deviation
        if self.pattern != 0 and pulse > 0 and not _draw(philox_word(pulse - 1, keys + ALICE), self.intensity):
            factor *= 1 + self.pattern
        return factor

    cdef Py_ssize_t _accept(
        self, Draws *draws, Candidate *found, Py_ssize_t count, int64_t first, const uint64_t *keys,
    ) except -1 nogil:
        """Move the candidates that have a detectable photon to the front; return how many they are."""
        cdef bint varies = self.noise > 0 or self.pattern != 0
        cdef Py_ssize_t i, state, kept = 0
        cdef double u, click, weight, single
        for i in range(count):
            found[i].state = self._state(first + found[i].pulse, keys)
        for i in range(count):
            state = found[i].state
            click, weight, single = self.click[state], self.weight[state], self.single[state]
            if varies and self.photons[state] == POISSON:
                weight *= self._factor(draws, first + found[i].pulse, keys)
                click = -expm1(-weight)
                single = weight * (1 - click)
            u = draw_uniform(&draws.stream) * self.bound
            found[kept].pulse, found[kept].state = found[i].pulse, state
            found[kept].u, found[kept].weight, found[kept].single = u, weight, single
            kept += u < click  # no branch: nothing could guess it
        return kept

    cdef inline int64_t _number(self, Draws *draws, const Candidate *pulse) except -1 nogil:
        """Return how many detectable photons an accepted pulse has, by inversion of the number that accepted it."""
        cdef uint8_t photons = self.photons[pulse.state]
        cdef double u = pulse.u, chance = pulse.single, weight = pulse.weight
        cdef int64_t n = 1
        if (weight if photons == POISSON else photons * weight / (1 + weight)) > MANY:
            return _many_photons(draws, photons, weight, weight / (1 + weight))
        while u >= chance and n < photons:
            u -= chance
            chance *= weight * (1 if photons == POISSON else photons - n) / (n + 1)
            n += 1
        return n

    cdef inline Py_ssize_t _mode(self, Draws *draws, Py_ssize_t state) except -1 nogil:
        cdef Py_ssize_t k, mode = 0, last = self.cumulative.shape[1] - 1
        cdef double u = draw_uniform(&draws.stream) * self.cumulative[state, last]
        for k in range(last):
            mode += u >= self.cumulative[state, k]
        return mode

    cdef Py_ssize_t _arrivals(
        self, const uint64_t *keys, int64_t first, int64_t n_pulses, Draws *draws, double[::1] time_ps,
        uint8_t[::1] detector, uint8_t[::1] bright, int32_t[::1] pulse, uint16_t[::1] state,
    ) except -1 nogil:
        cdef Candidate candidates[BATCH]
        cdef Candidate *c
        cdef int64_t position = 0, photons
        cdef Py_ssize_t found = 0, count = BATCH, i, j, mode
        cdef double time, pulses_per_candidate
        if self.bound == 0:
            return 0
        pulses_per_candidate = -1 / log1p(-self.bound)
        while count == BATCH:
            count = _skip(draws, candidates, pulses_per_candidate, &position, n_pulses)
            for i in range(self._accept(draws, candidates, count, first, keys)):
                c = candidates + i
                photons = self._number(draws, c)
                while photons > 0:
                    photons -= 1
                    mode = self._mode(draws, c.state)
                    time = c.pulse * self.period_ps + self.state_offset_ps[c.state] + self.mode_offset_ps[mode]
                    if self.sigma_ps > 0:
                        time += self.sigma_ps * draw_normal(&draws.stream)
                    j = found
                    found += 1
                    if j >= time_ps.shape[0]:
                        continue
                    while j > 0 and time_ps[j - 1] > time:
                        time_ps[j], detector[j], bright[j] = time_ps[j - 1], detector[j - 1], bright[j - 1]
                        pulse[j], state[j] = pulse[j - 1], state[j - 1]
                        j -= 1
                    time_ps[j], detector[j], bright[j] = time, self.mode_detector[mode], self.bright[c.state]
                    pulse[j], state[j] = <int32_t>c.pulse, <uint16_t>c.state
        return found

    def arrivals(
        self, const uint64_t[:, ::1] keys not None, int64_t first_pulse, int64_t n_pulses, bit_generator not None,
        double[::1] time_ps not None, uint8_t[::1] detector not None, uint8_t[::1] bright not None,
        int32_t[::1] pulse not None, uint16_t[::1] state not None,
    ):
        """Draw the detectable photons of a range of pulses, in the order of time.

        Args:
            keys: Philox keys of the sender's, the receiver's and the eavesdropper's choices.
            first_pulse: Number of the first pulse.
            n_pulses: How many, below 2^31.
            bit_generator: A NumPy BitGenerator; draws the rest.
            time_ps: Output: after the mean arrival of the first pulse at a mode without offset.
            detector: Output: where.
            bright: Output: 1 for light that makes any detector click.
            pulse: Output: after first_pulse.
            state: Output: of the pulse, see `PulseTables`.

        Returns:
            How many there are. If that is more than the arrays hold, their content is of no use: set the state of the
            bit generator back and call again with arrays that hold as many, and they are the same ones.

        Raises:
            ValueError: The arrays differ in length, or the range of pulses is out of range.
        """
        cdef Draws draws
        draws.bits = <bitgen_t *>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator")
        cdef Py_ssize_t capacity = time_ps.shape[0], found
        if keys.shape[0] != 3 or keys.shape[1] != 2:
            raise ValueError("keys: give three of two words")
        if (
            detector.shape[0] != capacity or bright.shape[0] != capacity or pulse.shape[0] != capacity
            or state.shape[0] != capacity
        ):
            raise ValueError("the outputs differ in length")
        if first_pulse < 0 or not 0 <= n_pulses < 1 << 31:
            raise ValueError("first_pulse or n_pulses out of range")
        with bit_generator.lock, nogil:
            draw_seed(&draws.stream, draws.bits)
            found = self._arrivals(&keys[0, 0], first_pulse, n_pulses, &draws, time_ps, detector, bright, pulse, state)
        return found

    cdef int _words(
        self, bint receiver, const uint64_t[::1] key, int64_t first, const int64_t[::1] pulse, uint8_t[::1] out,
    ) except -1 nogil:
        """Write the choices of some pulses; of those from `first` on if none are given."""
        cdef uint64_t word[4]
        cdef int64_t number
        cdef Py_ssize_t i
        for i in range(out.shape[0]):
            number = first + i if pulse is None else pulse[i]
            if i == 0 or number & 3 == 0 or pulse is not None:
                philox(<uint64_t>number >> 2, key[0], key[1], word)
            out[i] = _draw(word[number & 3], self.bob) if receiver else self._choice(word[number & 3])
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
