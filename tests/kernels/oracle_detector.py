"""A detector told in plain Python: the same draws, in the order of the events, from the same stream."""

import heapq
import math

import numpy as np

from qkdhw_emulators._optics.detector import detect
from qkdhw_emulators._optics.variates import Variates

PHOTON, DARK, AFTERPULSE, BACKGROUND, BRIGHT = range(5)
LATCH_CLICKS = 1024


def detect_alone(chain, time_ps, bright, number, horizon_ps, click_ps, cause, origin):
    """Run one detector as one of a receiver's; return how many arrivals were used and how many clicks written."""
    detector, channel = np.zeros(len(time_ps), np.uint8), np.full(len(click_ps), 9, np.uint8)
    used, n = detect([chain], time_ps, detector, bright, number, 0, horizon_ps, click_ps, channel, cause, origin)
    assert not channel[:n].any()
    return used, n


class Oracle:
    """Takes the arguments of DetectorChain; `run` is told all arrivals at once and returns (time, cause, number)."""

    def __init__(
        self, bit_generator, *, dark_hz=0, background_hz=0, dead_time_ps=0, paralysable=False, recovery_ps=0,
        child_probability=(), child_tau_ps=(), power_law=(0, 1, 1, 1), jitter_ps=0, tail_weight=0, tail_ps=0,
        latch_hz=0, period_ps=1, gate_width_ps=0, gate_fwhm_ps=0, gate_centre_ps=0,
    ):  # fmt: skip
        self.rng = Variates(bit_generator)
        self.exponentials, self.for_clicks = [], []
        self.dead_time, self.paralysable = dead_time_ps, paralysable
        self.recovery, self.recovers = recovery_ps, 0.0
        self.components = list(zip(child_probability, child_tau_ps, strict=True))
        self.power_law = power_law
        self.children = power_law[0] + sum(child_probability)
        self.jitter, self.tail = jitter_ps, tail_ps
        self.latch_hz = latch_hz
        self.period, self.width, self.fwhm = period_ps, gate_width_ps, gate_fwhm_ps
        self.centre = gate_centre_ps % period_ps
        self.open = self.centre - gate_width_ps / 2
        self.blinded = self.dead = self.latched = False
        self.live_from, self.clicks, self.clicks_since, self.due = -math.inf, 0, 0.0, []
        self.tail_weight = tail_weight
        self.until_birth = self.failures(1 - math.exp(-self.children))
        self.until_tail = self.failures(tail_weight)
        self.noise_rate = (dark_hz + background_hz) * 1e-12
        self.dark_share = dark_hz / (dark_hz + background_hz) if self.noise_rate else 1
        self.open_time = max(0.0, -self.open) if self.width else 0.0  # time spent in gates; the first may be open at 0
        self.noise = self.next_noise()

    def exponential(self):
        """Return a variate; 64 are drawn at a time, and the last is taken first."""
        if not self.exponentials:
            self.exponentials = self.block("standard_exponential")
        return self.exponentials.pop()

    def block(self, law):
        block = np.empty(64)
        self.rng.fill(law, block)
        return block.tolist()

    def failures(self, probability):
        if probability in {0, 1}:
            self.exponential()
            return 0 if probability else math.inf
        return math.floor(self.exponential() / -math.log1p(-probability))

    def next_noise(self):
        if not self.noise_rate:
            return math.inf
        self.open_time += self.exponential() / self.noise_rate
        if not self.width:
            return self.open_time
        gate, phase = divmod(self.open_time, self.width)
        return gate * self.period + self.open + phase

    def run(self, time_ps, bright, number, horizon_ps):
        found = []
        light = [(t, b, n) for t, b, n in zip(time_ps, bright, number, strict=True) if t < horizon_ps]
        light.append((math.inf, 0, -1))
        i = 0
        while min(light[i][0], self.noise, self.due[0] if self.due else math.inf) < horizon_ps:
            t, is_bright, n = light[i]
            if t <= self.noise and (not self.due or t <= self.due[0]):
                i += 1
                cause = self.meet_light(t, is_bright)
            elif not self.due or self.noise <= self.due[0]:
                t, n = self.noise, -1
                cause = self.meet_noise(t)
                self.noise = self.next_noise()
            else:
                t, n = heapq.heappop(self.due), -1
                cause = AFTERPULSE if self.hears() and self.is_live(t) else None
            if cause is not None:
                found.append((self.click(t), cause, n))
        return found

    def hears(self):
        return not (self.blinded or self.dead or self.latched)

    def meet_light(self, t, bright):
        if bright:
            return None if self.dead or self.latched or self.in_dead_time(t) else BRIGHT
        return PHOTON if self.hears() and self.through_gate(t) and self.is_live(t) else None

    def meet_noise(self, t):
        cause = BACKGROUND if self.dark_share < 1 and self.rng.random() >= self.dark_share else DARK
        if not self.hears() or (cause == BACKGROUND and not self.through_gate(t)) or not self.is_live(t):
            return None
        return cause

    def in_dead_time(self, t):
        inside = t < self.live_from
        if inside and self.paralysable:
            self.live_from = t + self.dead_time
        return inside

    def is_live(self, t):
        if self.in_dead_time(t):
            return False
        if t - self.live_from >= self.recovers:
            return True
        self.recovers = self.recovery * self.exponential()
        return False

    def through_gate(self, t):
        if not self.width:
            return True
        phase = (t - self.centre + self.period / 2) % self.period - self.period / 2
        if abs(phase) > self.width / 2:
            return False
        return not self.fwhm or self.exponential() > 4 * math.log(2) * (phase / self.fwhm) ** 2

    def draw_clicks(self):
        """Return (delay, recovery) of the next 64 clicks, the last first."""
        delays = [self.jitter * x for x in (self.block("standard_normal") if self.jitter else [0.0] * 64)]
        while self.until_tail < 64:
            delays[self.until_tail] += self.tail * self.exponential()
            self.until_tail += 1 + self.failures(self.tail_weight)
        self.until_tail -= 64
        recoveries = self.block("standard_exponential") if self.recovery else [0.0] * 64
        return list(zip(delays, recoveries, strict=True))[::-1]

    def click(self, t):
        self.for_clicks = self.for_clicks or self.draw_clicks()
        delay, recovery = self.for_clicks.pop()
        self.live_from, self.recovers = t + self.dead_time, self.recovery * recovery
        if self.latch_hz:
            self.clicks += 1
            if self.clicks == LATCH_CLICKS:
                if (t - self.clicks_since) * 1e-12 < LATCH_CLICKS / self.latch_hz:
                    self.latched, self.due = True, []
                self.clicks, self.clicks_since = 0, t
        if not self.blinded:
            self.until_birth -= 1
            if self.until_birth < 0:
                self.bear(t)
                self.until_birth = self.failures(1 - math.exp(-self.children))
        return t + delay

    def bear(self, t):
        """Poisson number, of which it is known that it is not 0."""
        none = math.exp(-self.children)
        u = none + (1 - none) * self.rng.random()
        n, term, below = 0, none, none
        while n == 0 or u >= below:
            n += 1
            term *= self.children / n
            below += term
        for _ in range(n):
            due = t + self.wait()
            if self.width:
                due = math.ceil((due - self.open) / self.period) * self.period + self.open
                due += self.rng.random() * self.width
            heapq.heappush(self.due, due)

    def wait(self):
        if not self.components:
            _, exponent, a, b = self.power_law
            u = self.rng.random()
            if exponent == 1:
                return a * (b / a) ** u
            power = 1 - exponent
            return a * math.exp(math.log1p(u * math.expm1(power * math.log(b / a))) / power)
        which = 0
        if len(self.components) > 1:
            u = self.rng.random() * self.children
            while u >= self.components[which][0] and which + 1 < len(self.components):
                u -= self.components[which][0]
                which += 1
        return self.components[which][1] * self.exponential()
