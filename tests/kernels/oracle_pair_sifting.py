"""Rice coding and the sifting of pairs, in plain integers, written to be read."""

from dataclasses import dataclass, field

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
        self.servo_q32 = 0
        self.passed = 0  # events before all later windows
        self.free = 0  # the first event after all that were taken

    def sift(self, units, bases):
        out = Sifted()
        for begin in range(0, len(units), BLOCK):
            residuals = 0
            for i in range(begin, min(begin + BLOCK, len(units))):
                residuals += self.sift_one(i, units[i], bases[i], out)
            if self.servo_pairs:
                most = self.tracking * self.servo_pairs
                self.servo_q32 += max(-most, min(most, residuals)) * (2**32 // self.servo_pairs)
        return out

    def sift_one(self, i, unit, basis, out):
        time = (unit * self.rate + self.rate // 2 + self.offset * 2**48 + self.servo_q32 * 2**16) >> 48
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
        return sum(self.events[j][0] - time for _, j in near)
