"""Turn the light that reaches detectors into clicks.

Photons, noise and afterpulses are taken in the order of their times; each may be refused by gate, dead time, recovery,
blinding or latching. What follows from a click is at its true time; jitter is in the registered time alone.

All detectors are gone through together, so that their clicks come in one order of time. Each has a random stream of its
own, drawn from in the order of its events and nothing else; what clicks need, whenever they come, is drawn for 64 of
them at a time: a readable oracle on the same stream gives the same clicks. What has a probability exp(-x) happens if an
exponential variate is above x; what happens to a fixed share of the clicks is counted down to, from a geometric variate.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport INFINITY, ceil, exp, expm1, fabs, floor, isfinite, log, log1p
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free
from numpy.random cimport bitgen_t

from draw cimport draw_exponentials, draw_normals, draw_prepare, draw_seed, draw_t, draw_uniform
from heap cimport heap_add, heap_drop, heap_t
from rounding cimport whole

draw_prepare()

cdef enum:
    PHOTON = 0
    DARK = 1
    AFTERPULSE = 2
    BACKGROUND = 3
    BRIGHT = 4
    LATCH_CLICKS = 1024
    MAX_COMPONENTS = 8
    MAX_DETECTORS = 8
    BLOCK = 64  # clicks, and exponential variates, that are drawn for at a time

cdef double PER_HZ_PS = 1e-12, MOST_HZ = 1e12
cdef double LONGEST_PS = 1e18
cdef double FOUR_LN_2 = 2.772588722239781


def _check(name, double value, double most):
    if not 0 <= value <= most:
        raise ValueError(f"{name}: {value} is not within 0 to {most:g}")


def _check_law(law):
    if len(law) != 4:
        raise ValueError("power_law: give probability, exponent, shortest and longest waiting time")
    cdef double probability = law[0], exponent = law[1], from_ps = law[2], to_ps = law[3]
    _check("power_law: probability", probability, 1)
    if not (isfinite(exponent) and 0 < from_ps <= to_ps <= LONGEST_PS):
        raise ValueError("power_law: the exponent is finite, and 0 < shortest <= longest waiting time <= 1e18 ps")


@cython.auto_pickle(False)
@cython.final
cdef class DetectorChain:
    """One detector.

    A click has a Poissonian number of children, afterpulses that may have children in turn. The mean number is exact, and
    so is their intensity, the sum over the components of probability / tau * exp(-t / tau): traps empty independently of
    each other. A child in the dead time is lost. In a gated detector a child counts in a gate only: it comes at a uniform
    place of the first gate that opens after its time, so that the mean number of children is still the sum of the
    probabilities; that is the published number, registered afterpulses per click.

    Noise of a gated detector lives in the gates; its rates are those in an open gate. Light of the background, and no
    dark count, follows the gate's profile. Latching is decided after each 1024 clicks from the time that they took.

    Args:
        bit_generator: numpy.random.BitGenerator; 32 of its words seed what the detector draws.
        dark_hz: Dark counts per second, 0 to 1e12.
        background_hz: Detectable background photons per second, 0 to 1e12.
        dead_time_ps: After a click.
        paralysable: Whether an event in the dead time prolongs it.
        recovery_ps: Time constant with which the efficiency comes back after the dead time; 0: at once.
        child_probability: For each exponential component, mean children of a click; at most 8 components.
        child_tau_ps: Lifetimes of the components.
        power_law: Probability, exponent, shortest and longest waiting time in ps; probability 0: none. It excludes
            the components.
        jitter_ps: Standard deviation of the Gaussian part.
        tail_weight: Share of the clicks with an exponential delay on top.
        tail_ps: Constant of that delay.
        latch_hz: Count rate above which it latches; 0: never.
        period_ps: Time from gate to gate.
        gate_width_ps: Length of a gate; 0: free-running.
        gate_fwhm_ps: Width of the Gaussian efficiency in the gate; 0: flat.
        gate_centre_ps: Centre of a gate, modulo the period.

    Attributes:
        blinded: Only bright light makes clicks, and they have no children.
        dead: Nothing makes clicks.
        latched: The same, until it is set to False.

    Raises:
        ValueError: Components do not fit each other, a gate is longer than the period, a number is negative, not finite
            or too large, or probabilities of children add to more than 1.
    """

    cdef public bint blinded, dead, latched
    cdef draw_t _draws
    cdef double[BLOCK] _delays_ps, _recoveries_ps  # of the next clicks
    cdef double[BLOCK] _exponentials
    cdef int _clicked, _n_exponentials  # how many of these are used; how many are left
    cdef double _now, _live_from
    cdef double _noise_rate, _dark_share, _noise_next, _noise_gate, _noise_phase
    cdef double _dead_ps, _recovery_ps, _recovers_ps
    cdef bint _paralysable
    cdef double _children, _childless, _birth_scale, _until_birth
    cdef int _n_components
    cdef double[MAX_COMPONENTS] _cumulative, _tau_ps
    cdef double _exponent, _from_ps, _to_ps
    cdef double _jitter_ps, _tail_ps, _tail_scale, _until_tail
    cdef double _latch_ps, _clicks_since
    cdef int _clicks
    cdef int64_t _period_ps
    cdef double _per_period, _width_ps, _per_fwhm_ps, _centre_ps, _open_ps
    cdef heap_t _due

    def __cinit__(
        self, bit_generator, *, double dark_hz=0, double background_hz=0, double dead_time_ps=0, bint paralysable=False,
        double recovery_ps=0, child_probability=(), child_tau_ps=(), power_law=(0, 1, 1, 1), double jitter_ps=0,
        double tail_weight=0, double tail_ps=0, double latch_hz=0, int64_t period_ps=1, double gate_width_ps=0,
        double gate_fwhm_ps=0, double gate_centre_ps=0,
    ):
        cdef int k
        if len(child_probability) != len(child_tau_ps) or len(child_tau_ps) > MAX_COMPONENTS:
            raise ValueError("child_probability and child_tau_ps: give as many of each, at most 8")
        if period_ps < 1 or not 0 <= gate_width_ps <= period_ps:
            raise ValueError("gate_width_ps: a gate is from 0 to the period, which is at least 1 ps")
        for name, value in (
            ("dead_time_ps", dead_time_ps), ("recovery_ps", recovery_ps), ("jitter_ps", jitter_ps), ("tail_ps", tail_ps),
            ("latch_hz", latch_hz), ("gate_fwhm_ps", gate_fwhm_ps), ("gate_centre_ps", fabs(gate_centre_ps)),
            *(("child_tau_ps", tau) for tau in child_tau_ps),
        ):
            _check(name, value, LONGEST_PS)
        _check("tail_weight", tail_weight, 1)
        _check_law(power_law)
        for probability in child_probability:
            _check("child_probability", probability, 1)
        _check("child_probability and power_law, the sum", sum(child_probability) + power_law[0], 1)
        draw_seed(&self._draws, <bitgen_t*>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator"))
        self._dead_ps, self._paralysable, self._recovery_ps = dead_time_ps, paralysable, recovery_ps
        self._clicked = BLOCK
        self._children = power_law[0]
        self._exponent, self._from_ps, self._to_ps = power_law[1], power_law[2], power_law[3]
        self._n_components = len(child_tau_ps)
        for k in range(self._n_components):
            self._children += child_probability[k]
            self._cumulative[k] = self._children
            self._tau_ps[k] = child_tau_ps[k]
        self._childless = exp(-self._children)
        self._birth_scale = 1 / self._children if self._children > 0 else INFINITY
        self._until_birth = self._failures(self._birth_scale)
        self._jitter_ps, self._tail_ps = jitter_ps, tail_ps
        self._tail_scale = -1 / log1p(-tail_weight) if 0 < tail_weight < 1 else 0.0 if tail_weight == 1 else INFINITY
        self._until_tail = self._failures(self._tail_scale)
        self._latch_ps = LATCH_CLICKS / (latch_hz * PER_HZ_PS) if latch_hz > 0 else 0
        self._period_ps, self._per_period, self._width_ps = period_ps, 1.0 / period_ps, gate_width_ps
        self._per_fwhm_ps = 1 / gate_fwhm_ps if gate_fwhm_ps > 0 else 0
        self._centre_ps = gate_centre_ps - floor(gate_centre_ps / period_ps) * period_ps
        self._open_ps = self._centre_ps - gate_width_ps / 2
        self._live_from, self._noise_next = -INFINITY, INFINITY
        self.set_noise(dark_hz, background_hz)

    def __dealloc__(self):
        free(self._due.at)

    def set_noise(self, double dark_hz, double background_hz):
        """Change the noise from the last horizon on; drawing again is exact, for an exponential wait has no memory.

        Args:
            dark_hz: Dark counts per second, 0 to 1e12.
            background_hz: Detectable background photons per second, 0 to 1e12.

        Raises:
            ValueError: A rate is not so.
        """
        _check("dark_hz", dark_hz, MOST_HZ)
        _check("background_hz", background_hz, MOST_HZ)
        cdef double rate = (dark_hz + background_hz) * PER_HZ_PS
        cdef double share = dark_hz / (dark_hz + background_hz) if rate > 0 else 1
        if rate == self._noise_rate and share == self._dark_share:
            return
        self._noise_rate, self._dark_share = rate, share
        self._noise_gate = ceil((self._now - self._centre_ps - self._width_ps / 2) / self._period_ps)
        self._noise_phase = max(0.0, self._now - (self._noise_gate * self._period_ps + self._open_ps))
        self._noise_next = self._now
        self._draw_noise()

    def rebase(self, int64_t cell_ps):
        """Count times from `cell_ps` later on.

        Args:
            cell_ps: Length of the cell that ends.

        Raises:
            ValueError: A gated detector's cell is no whole number of periods.
        """
        cdef Py_ssize_t i
        if self._width_ps > 0 and cell_ps % self._period_ps:
            raise ValueError("cell_ps: not a whole number of periods")
        self._now -= cell_ps
        self._live_from -= cell_ps
        self._noise_next -= cell_ps
        self._noise_gate -= cell_ps // self._period_ps
        self._clicks_since -= cell_ps
        for i in range(self._due.n):
            self._due.at[i] -= cell_ps

    cdef inline double _soonest(self) noexcept nogil:
        """When noise or a child comes next."""
        cdef double due = self._due.at[0] if self._due.n else INFINITY
        return min(self._noise_next, due)

    cdef int _meet_soonest(self) except -2 nogil:
        """Take what comes next of noise and children; return the cause of a click, or -1."""
        cdef double t = self._soonest()
        cdef int why
        if self._noise_next <= t:
            why = self._meet_noise(t)
            self._draw_noise()
            return why
        heap_drop(&self._due)
        return AFTERPULSE if self._hears() and self._is_live(t) else -1

    cdef inline bint _hears(self) noexcept nogil:
        """Whether anything but bright light can make it click."""
        return not (self.blinded or self.dead or self.latched)

    cdef inline int _meet_light(self, double t, bint bright) except -2 nogil:
        """Return the cause of a click, or -1."""
        if bright:
            if self.dead or self.latched or self._in_dead_time(t):
                return -1
            return BRIGHT
        if not self._hears() or (self._width_ps > 0 and not self._through_gate(t)) or not self._is_live(t):
            return -1
        return PHOTON

    cdef inline int _meet_noise(self, double t) except -2 nogil:
        cdef int why = DARK
        if self._dark_share < 1 and draw_uniform(&self._draws) >= self._dark_share:
            why = BACKGROUND
        if not self._hears():
            return -1
        if why == BACKGROUND and self._width_ps > 0 and not self._through_gate(t):
            return -1
        return why if self._is_live(t) else -1

    cdef inline bint _in_dead_time(self, double t) noexcept nogil:
        if t >= self._live_from:
            return False
        if self._paralysable:
            self._live_from = t + self._dead_ps
        return True

    cdef inline bint _is_live(self, double t) noexcept nogil:
        """Whether dead time and recovery let a click be: beyond t after the dead time with the chance exp(-t / constant)."""
        if t - self._live_from >= self._recovers_ps:
            return True
        if not self._in_dead_time(t):
            self._recovers_ps = self._recovery_ps * self._exponential()
        return False

    cdef inline bint _through_gate(self, double t) noexcept nogil:
        cdef double phase = t - self._centre_ps, share
        phase -= whole(phase * self._per_period + 0.5) * self._period_ps
        if fabs(phase) > self._width_ps / 2:
            return False
        if self._per_fwhm_ps > 0:
            share = phase * self._per_fwhm_ps
            return self._exponential() > FOUR_LN_2 * share * share
        return True

    cdef inline double _click(self, double t) except? -1 nogil:
        """Click at t; return the registered time."""
        cdef int i
        if self._clicked == BLOCK:
            self._draw_clicks()
        i = self._clicked
        self._clicked += 1
        self._live_from, self._recovers_ps = t + self._dead_ps, self._recoveries_ps[i]
        if self._latch_ps > 0:
            self._count_for_latch(t)
        if not self.blinded:
            self._until_birth -= 1
            if self._until_birth < 0:
                self._bear(t)
                self._until_birth = self._failures(self._birth_scale)
        return t + self._delays_ps[i]

    cdef int _draw_clicks(self) except -1 nogil:
        """Draw how late the next clicks are registered, and how long after the dead time events are refused."""
        cdef int i
        if self._jitter_ps > 0:
            draw_normals(&self._draws, self._delays_ps, BLOCK)
        for i in range(BLOCK):
            self._delays_ps[i] *= self._jitter_ps
        while self._until_tail < BLOCK:
            self._delays_ps[<int>self._until_tail] += self._tail_ps * self._exponential()
            self._until_tail += 1 + self._failures(self._tail_scale)
        self._until_tail -= BLOCK
        if self._recovery_ps > 0:
            draw_exponentials(&self._draws, self._recoveries_ps, BLOCK)
        for i in range(BLOCK):
            self._recoveries_ps[i] *= self._recovery_ps
        self._clicked = 0
        return 0

    cdef inline double _exponential(self) noexcept nogil:
        if self._n_exponentials == 0:
            draw_exponentials(&self._draws, self._exponentials, BLOCK)
            self._n_exponentials = BLOCK
        self._n_exponentials -= 1
        return self._exponentials[self._n_exponentials]

    cdef inline double _failures(self, double scale) noexcept nogil:
        """Draw how many trials of probability 1 - exp(-1 / scale) fail before one succeeds."""
        return floor(self._exponential() * scale)

    cdef int _count_for_latch(self, double t) except -1 nogil:
        self._clicks += 1
        if self._clicks == LATCH_CLICKS:
            if t - self._clicks_since < self._latch_ps:
                self.latched = True
                self._due.n = 0
            self._clicks = 0
            self._clicks_since = t
        return 0

    cdef int _bear(self, double t) except -1 nogil:
        """Draw the children of a click at t that has some: their number by inversion of the Poisson law above 0."""
        cdef double term = self._childless, below = term, due
        cdef double u = below + (1 - below) * draw_uniform(&self._draws)
        cdef int n = 0, k
        while n == 0 or (u >= below and term > 0):
            n += 1
            term *= self._children / n
            below += term
        for k in range(n):
            due = t + self._wait()
            if self._width_ps > 0:
                due = ceil((due - self._open_ps) / self._period_ps) * self._period_ps + self._open_ps
                due += draw_uniform(&self._draws) * self._width_ps
            heap_add(&self._due, due)
        return 0

    cdef double _wait(self) except -1 nogil:
        cdef double u, power = 1 - self._exponent, decades
        cdef int k = 0
        if self._n_components == 0:
            u, decades = draw_uniform(&self._draws), log(self._to_ps / self._from_ps)
            if power != 0:  # near 0, too, without a difference of what is nearly the same
                return self._from_ps * exp(log1p(u * expm1(power * decades)) / power)
            return self._from_ps * exp(u * decades)
        if self._n_components > 1:
            u = draw_uniform(&self._draws) * self._children
            while k < self._n_components - 1 and u >= self._cumulative[k]:
                k += 1
        return self._tau_ps[k] * self._exponential()

    cdef int _draw_noise(self) except -1 nogil:
        """Draw the next noise event; in a gated detector time passes in the gates only."""
        cdef double gates
        if self._noise_rate <= 0:
            self._noise_next = INFINITY
            return 0
        if self._width_ps <= 0:
            self._noise_next += self._exponential() / self._noise_rate
            return 0
        self._noise_phase += self._exponential() / self._noise_rate
        gates = floor(self._noise_phase / self._width_ps)
        self._noise_phase = max(0.0, self._noise_phase - gates * self._width_ps)
        self._noise_gate += gates
        self._noise_next = self._noise_gate * self._period_ps + self._open_ps + self._noise_phase
        return 0


def detect(
    list chains not None,
    const double[::1] time_ps not None,
    const uint8_t[::1] detector not None,
    const uint8_t[::1] bright not None,
    const int64_t[::1] number,
    int64_t first,
    double horizon_ps,
    double[::1] click_ps not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] cause not None,
    int64_t[::1] origin not None,
):
    """Go on to a horizon with all detectors of a receiver.

    Args:
        chains: The detectors, 1 to 8 `DetectorChain`, each of them once.
        time_ps: float64 (n,), arrivals since the cell's begin, rising; those from the horizon on are left.
        detector: uint8 (n,), which detector they reach.
        bright: uint8 (n,), 1 for light that clicks whatever the gate, the recovery and blinding.
        number: int64 (n,), numbers of the arrivals, for `origin`; None: they are counted.
        first: From which number on they are counted.
        horizon_ps: Where to stop.
        click_ps: float64, out: registered times, in the order of the true ones.
        channel: uint8, out: which detector.
        cause: uint8, out: 0 photon, 1 dark count, 2 afterpulse, 3 background, 4 bright light.
        origin: int64, out: number of the arrival, -1 for the others.

    Returns:
        How many arrivals were used and how many clicks written. If as many as there is room for, call again.

    Raises:
        ValueError: The arrays of the arrivals, or those of the clicks, differ in length; there are no chains or too
            many, or an arrival is for none of them: those before it have been used.
    """
    cdef void* members[MAX_DETECTORS]
    cdef DetectorChain chain
    cdef Py_ssize_t used = 0, written = 0
    cdef int n_members = 0
    if not 1 <= len(chains) <= MAX_DETECTORS:
        raise ValueError("chains: 1 to 8")
    for chain in chains:
        members[n_members] = <void*>chain
        n_members += 1
    if not time_ps.shape[0] == detector.shape[0] == bright.shape[0] or (
        number is not None and number.shape[0] != time_ps.shape[0]
    ):
        raise ValueError("time_ps, detector, bright and number: lengths differ")
    if not (click_ps.shape[0] == channel.shape[0] == cause.shape[0] == origin.shape[0]):
        raise ValueError("click_ps, channel, cause and origin: lengths differ")
    with nogil:
        _detect(
            members, n_members, time_ps, detector, bright, number, first, horizon_ps, click_ps, channel, cause,
            origin, &used, &written,
        )
    return used, written


cdef int _detect(
    void** members, int n_members, const double[::1] time_ps, const uint8_t[::1] detector, const uint8_t[::1] bright,
    const int64_t[::1] number, int64_t first, double horizon, double[::1] click_ps, uint8_t[::1] channel,
    uint8_t[::1] cause, int64_t[::1] origin, Py_ssize_t* used, Py_ssize_t* written,
) except -1 nogil:
    cdef double[MAX_DETECTORS] own  # when noise or a child of each comes next
    cdef double t, soonest  # of them all, or before
    cdef Py_ssize_t i = 0, n = 0, n_arrivals = time_ps.shape[0], room = click_ps.shape[0]
    cdef int k, why, whose
    for k in range(n_members):
        own[k] = (<DetectorChain>members[k])._soonest()
    whose = _first(own, n_members)
    soonest = own[whose]
    while n < room:
        t = time_ps[i] if i < n_arrivals else INFINITY
        if t <= soonest:
            if t >= horizon:
                break
            k = detector[i]
            if k >= n_members:
                with gil:
                    raise ValueError(f"detector: {k} is none of {n_members}")
            why = (<DetectorChain>members[k])._meet_light(t, bright[i])
            origin[n] = first + i if number is None else number[i]
            i += 1
            if why < 0:
                continue
        else:
            k, t = whose, soonest
            if own[k] > t:  # what was to come went when the detector latched
                whose = _first(own, n_members)
                soonest = own[whose]
                continue
            if t >= horizon:
                break
            why = (<DetectorChain>members[k])._meet_soonest()
            origin[n] = -1
            own[k] = (<DetectorChain>members[k])._soonest()
            whose = _first(own, n_members)
            soonest = own[whose]
            if why < 0:
                continue
        click_ps[n] = (<DetectorChain>members[k])._click(t)
        own[k] = (<DetectorChain>members[k])._soonest()
        if own[k] < soonest:
            whose, soonest = k, own[k]
        channel[n], cause[n] = <uint8_t>k, <uint8_t>why
        n += 1
    if n < room:
        for k in range(n_members):
            (<DetectorChain>members[k])._now = horizon
    used[0], written[0] = i, n
    return 0


cdef inline int _first(const double* time_ps, int n) noexcept nogil:
    """Say which time is the least; without a branch, for nothing could guess it."""
    cdef int k, first = 0
    cdef double least = time_ps[0]
    for k in range(1, n):
        first += (k - first) * (time_ps[k] < least)
        least = min(least, time_ps[k])
    return first
