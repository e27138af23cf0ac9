"""Rice coding and the sifting of pairs, in plain integers, written to be read."""

from dataclasses import dataclass, field
from fractions import Fraction

BLOCK = 1024


def best_k(span, n):
    k = 0
    while k < 31 and 2128 * 2**k // 1024 < span // n:
        k += 1
    return k


def encode_gaps(numbers, beside, least, step):
    """The stream as a string of 0 and 1, then as bytes."""
    bits = ""
    for begin in range(0, len(numbers), BLOCK):
        block = numbers[begin : begin + BLOCK]
        k = best_k(block[-1] - least, len(block))
        bits += low_bits(k, 5)
        for i, number in enumerate(block, begin):
            gap = number - least
            if gap >> k < 24:
                bits += "0" * (gap >> k) + "1" + low_bits(gap, k)
            else:
                bits += "0" * 24 + low_bits(gap, 62)
            bits += str(beside[i]) if beside else ""
            least = number + step
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


def clamp(value, most):
    return max(-most, min(most, value))


def low_bits(value, width):
    return "".join(str(value >> i & 1) for i in range(width))


@dataclass
class Sifted:
    kept: list = field(default_factory=list)
    key: list = field(default_factory=list)
    test: list = field(default_factory=list)
    counts: list = field(default_factory=lambda: [0, 0, 0, 0])


class PairOracle:
    """Sift announced detections against the whole own stream at once."""

    def __init__(self, ticks, detectors, rate_q48, offset, window, tracking, servo_pairs):
        self.events = list(zip(ticks, detectors, strict=True))
        self.rate, self.offset = rate_q48, offset
        self.window, self.tracking, self.servo_pairs = window, tracking, servo_pairs
        self.servo_q32 = self.drift_q48 = self.reference = 0
        self.passed = 0  # events before all later windows
        self.free = 0  # the first event after all that were taken

    def sift(self, first, units, bases):
        out = Sifted()
        self.steer(first, [])
        for begin in range(0, len(units), BLOCK):
            block = range(begin, min(begin + BLOCK, len(units)))
            distances = [d for i in block for d in self.sift_one(i, units[i], bases[i], out)]
            self.steer(units[block[-1]], distances)
        return out

    def steer(self, unit, distances):
        if self.servo_pairs == 0:
            return
        most = self.tracking * self.servo_pairs
        total, span = clamp(sum(distances), most), unit - self.reference
        self.servo_q32 += total * 2**32 // self.servo_pairs + (self.drift_q48 * span >> 16)
        if span > 0:
            share = Fraction(total * min(len(distances), BLOCK) * 2**44, self.servo_pairs**2 * span)
            self.drift_q48 = clamp(self.drift_q48 + int(share), self.rate // 2**13)
        self.reference = unit

    def sift_one(self, i, unit, basis, out):
        servo_q48 = self.servo_q32 * 2**16 + self.drift_q48 * (unit - self.reference)
        time = (unit * self.rate + self.rate // 2 + self.offset * 2**48 + servo_q48) >> 48
        while self.passed < len(self.events) and self.events[self.passed][0] < time - self.tracking:
            self.passed += 1
        near = []
        for j in range(self.passed, len(self.events)):
            if self.events[j][0] > time + self.tracking:
                break
            near.append((abs(self.events[j][0] - time), j))
        candidates = [pair for pair in near if pair[0] <= self.window]
        choice = [pair for pair in candidates if pair[1] >= self.free]
        out.counts[0] += len(choice) > 0
        out.counts[1] += len(candidates) > 1
        out.counts[2] += len(candidates) > 0 and not choice
        out.counts[3] += sum(distance > (self.window + self.tracking) // 2 for distance, _ in near)
        if choice:
            partner = min(choice)[1]
            self.free = partner + 1
            detector = self.events[partner][1]
            if detector >> 1 == basis:
                out.kept.append(i)
                (out.test if basis else out.key).append(detector & 1)
        return [self.events[j][0] - time for _, j in near]
