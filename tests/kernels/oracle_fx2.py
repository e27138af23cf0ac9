"""The FX2 card's event decoder, one event at a time, written to be read."""

WRAP = 1 << 49
LONGEST_STEP, LONGEST_BACK = 480_000_000_000, 80_000


def decode_fx2(data, phase_of, wraps, last):
    """Return times, channels, (voids, no input, unknown phase), (wraps, last), events consumed, index of a bad one."""
    times, channels, counts = [], [], [0, 0, 0]
    for i in range(len(data) // 8):
        low = int.from_bytes(data[8 * i : 8 * i + 4], "little")
        high = int.from_bytes(data[8 * i + 4 : 8 * i + 8], "little")
        if low == high == 0:
            counts[0] += 1
            continue
        phase = int(phase_of[low % 512])
        fast = low // 512 % 32
        slow = high * 256 + low // 2**24 + (fast < 17)
        raw = (slow * 512 + fast * 16 + max(phase, 0)) % WRAP
        step = (raw - last) % WRAP
        if last >= 0 and LONGEST_STEP < step < WRAP - LONGEST_BACK:
            counts[2] += phase < 0
            return times, channels, counts, (wraps, last), i, i
        if last >= 0 and step > LONGEST_STEP:
            wraps -= raw > last
        else:
            wraps += raw < last
        last = raw
        counts[2] += phase < 0
        inputs = [low >> 16 & 1, low >> 17 & 1, low >> 14 & 1, low >> 15 & 1]
        counts[1] += not any(inputs)
        for number, fired in enumerate(inputs, 1):
            if fired:
                times.append(wraps * WRAP + raw)
                channels.append(number)
    return times, channels, counts, (wraps, last), len(data) // 8, -1
