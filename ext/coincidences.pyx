"""Coincidences of sorted streams of times: pairs, counted and found, and coincidences of any order.

A pair (i, j) of `first` and `second` is a coincidence if low <= second[j] - first[i] <= high, in ticks. Two rules:
every such pair counts; or each event has one partner at most, the earliest that is free.

A scan of two streams with a branch a step costs a misprediction for every change of the stream that is ahead. Here a
step has no branch (comparisons are added to the indices), and as it then waits for its own loads, eight scans of
neighbouring parts of the streams run side by side. Streams are taken tile by tile, so that the check of their order and
the scan read a tile from memory once.

Times lie within +-2^62 ticks, low and high within +-2^61, so no sum or difference leaves 64 bits. Arrival times
decide the control flow; nothing here knows of key bits.
"""

from libc.stdint cimport int64_t, uint64_t, uint8_t

cdef enum:
    LANES = 8
    TILE = 262144          # singles a tile: 2 MiB of times
    MIN_STEPS = 16         # with fewer steps left than this a lane is finished alone
    MAX_WALK = 1024        # events looked at for a gap between two lanes
    KIND_PHOTON = 0        # qkdhw.model.EventKind

cdef int64_t TIME_LIMIT = <int64_t>1 << 62
cdef int64_t WINDOW_LIMIT = <int64_t>1 << 61


cdef struct Lanes:
    Py_ssize_t i[LANES]        # next event of the first stream
    Py_ssize_t i_end[LANES]
    Py_ssize_t j[LANES]        # next event of the second, or the first one not below the window
    Py_ssize_t j_end[LANES]    # (one partner) where the part of the second stream ends
    Py_ssize_t above[LANES]    # (every pair) the first one above the window
    Py_ssize_t out[LANES]      # where the next row goes
    Py_ssize_t used            # lanes that have a part of the tile


cdef inline int64_t delay_of(int64_t second, int64_t first) noexcept nogil:
    """Return the difference; of times that are out of range, which a later tile's check finds, a wrong one."""
    return <int64_t>(<uint64_t>second - <uint64_t>first)


cdef inline bint is_sorted(const int64_t[::1] time_ticks, Py_ssize_t begin, Py_ssize_t end) except -1 nogil:
    """Whether no event of begin .. end - 1 is earlier than the one before it and all lie within +-2^62 ticks.

    The sign bits of all differences are gathered, and those of t ^ 2t: the two highest bits of t differ if it is far.
    """
    cdef uint64_t here, last, signs = 0
    cdef Py_ssize_t i
    if begin == 0 and end > 0:
        if not -TIME_LIMIT < time_ticks[0] < TIME_LIMIT:
            return False
        begin = 1
    for i in range(begin, end):
        here = <uint64_t>time_ticks[i]
        last = <uint64_t>time_ticks[i - 1]
        signs |= (here - last) | (here ^ (here << 1))
    return signs >> 63 == 0


cdef inline Py_ssize_t lower_bound(
    const int64_t[::1] time_ticks, Py_ssize_t begin, Py_ssize_t end, int64_t ticks
) except -1 nogil:
    """Return the first index of begin .. end whose time is not below `ticks`."""
    cdef Py_ssize_t middle
    while begin < end:
        middle = (begin + end) >> 1
        if time_ticks[middle] < ticks:
            begin = middle + 1
        else:
            end = middle
    return begin


cdef inline Py_ssize_t split(
    const int64_t[::1] first, const int64_t[::1] second, int64_t shift, Py_ssize_t total
) except -1 nogil:
    """Of the first `total` events of both streams in time order (`first` later by `shift`): how many are of `first`."""
    cdef Py_ssize_t begin = max(<Py_ssize_t>0, total - second.shape[0])
    cdef Py_ssize_t end = min(total, first.shape[0])
    cdef Py_ssize_t middle
    while begin < end:
        middle = (begin + end) >> 1
        if delay_of(second[total - 1 - middle], first[middle]) > shift:
            begin = middle + 1
        else:
            end = middle
    return begin


def check_window(int64_t low, int64_t high):
    """Raise ValueError unless -2^61 < low <= high < 2^61."""
    if not -WINDOW_LIMIT < low <= high < WINDOW_LIMIT:
        raise ValueError(f"a window from {low} to {high} ticks is empty or out of range")


def first_descent(const int64_t[::1] time_ticks not None):
    """Return the first index that is earlier than the one before it or beyond +-2^62 ticks; n if there is none."""
    cdef Py_ssize_t n = time_ticks.shape[0]
    cdef Py_ssize_t i = n
    cdef int64_t last = -TIME_LIMIT + 1
    with nogil:
        if not is_sorted(time_ticks, 0, n):
            for i in range(n):
                if time_ticks[i] < last or time_ticks[i] >= TIME_LIMIT:
                    break
                last = time_ticks[i]
            else:
                i = n
    return i


def select_channel(
    const int64_t[::1] time_ticks not None,
    const uint8_t[::1] channel not None,
    const uint8_t[::1] kind not None,
    uint8_t wanted,
    int64_t[::1] out not None,
):
    """Write the times of the photons of one channel; return how many."""
    cdef Py_ssize_t n = time_ticks.shape[0]
    cdef Py_ssize_t i, k = 0
    if channel.shape[0] != n or kind.shape[0] != n:
        raise ValueError("time_ticks, channel and kind must have one length")
    if out.shape[0] < n + 1:
        raise ValueError("out needs n + 1 places")
    with nogil:
        for i in range(n):
            out[k] = time_ticks[i]
            k += (channel[i] == wanted) & (kind[i] == KIND_PHOTON)
    return k


# --- every pair counts --------------------------------------------------------------------------------------------
def find_partners(
    const int64_t[::1] first not None,
    const int64_t[::1] second not None,
    int64_t low,
    int64_t high,
    int64_t[::1] anchor not None,
    int64_t[::1] begin not None,
    int64_t[::1] number not None,
):
    """Write a row for each event of `first` that has partners: its index, the first partner's index, how many.

    Return the number of rows, or -1 if a stream is not sorted or leaves +-2^62 ticks.
    """
    cdef Py_ssize_t n = first.shape[0]
    cdef int64_t rows = 0
    check_window(low, high)
    if anchor.shape[0] < n or begin.shape[0] < n or number.shape[0] < n:
        raise ValueError("anchor, begin and number need as many places as first has events")
    with nogil:
        rows = scan_all(first, second, low, high, True, anchor, begin, number)
    return rows


def count_pairs(const int64_t[::1] first not None, const int64_t[::1] second not None, int64_t low, int64_t high):
    """Return the number of pairs, or -1 if a stream is not sorted or leaves +-2^62 ticks."""
    cdef int64_t pairs
    check_window(low, high)
    with nogil:
        pairs = scan_all(first, second, low, high, False, None, None, None)
    return pairs


cdef int64_t scan_all(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high, bint write,
    int64_t[::1] anchor, int64_t[::1] begin, int64_t[::1] number,
) except? -2 nogil:
    """Take the streams tile by tile; return the rows written, or the pairs if no rows are wanted, or -1."""
    cdef Py_ssize_t size = first.shape[0] + second.shape[0]
    cdef Py_ssize_t i = 0, j = 0, total = 0, i_end, total_end
    cdef int64_t found = 0
    cdef Lanes lanes
    while total < size:
        total_end = min(total + TILE, size)
        i_end = split(first, second, high, total_end)
        if not is_sorted(first, i, i_end) or not is_sorted(second, total - i, total_end - i_end):
            return -1
        if i_end > i:
            place_all(first, second, low, high, i, i_end, j, total, total_end, found, &lanes)
            if write:
                step_all(first, second, low, high, True, &lanes, anchor, begin, number)
                finish_all(first, second, low, high, True, &lanes, anchor, begin, number)
                found = close_up(&lanes, i, found, anchor, begin, number)
            else:
                found += step_all(first, second, low, high, False, &lanes, anchor, begin, number)
                found += finish_all(first, second, low, high, False, &lanes, anchor, begin, number)
            j = lanes.j[LANES - 1]
        i = i_end
        total = total_end
    return found


cdef int place_all(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high, Py_ssize_t i, Py_ssize_t i_end,
    Py_ssize_t j, Py_ssize_t total, Py_ssize_t total_end, Py_ssize_t rows, Lanes* lanes,
) except -1 nogil:
    """Cut a tile into lanes of equal work; a lane writes where its rows would lie if all its events had one."""
    cdef Py_ssize_t lane, cut, here
    for lane in range(LANES):
        cut = total + (total_end - total) * lane // LANES
        here = i if lane == 0 else split(first, second, high, cut)
        lanes.i[lane] = here
        lanes.out[lane] = rows + here - i
        lanes.above[lane] = cut - here
        lanes.j[lane] = lower_bound(second, j, cut - here, first[here] + low) if here < i_end else cut - here
        if lane > 0:
            lanes.i_end[lane - 1] = here
    lanes.i_end[LANES - 1] = i_end
    return 0


cdef inline int64_t step_all(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high, bint write, Lanes* lanes,
    int64_t[::1] anchor, int64_t[::1] begin, int64_t[::1] number,
) except -1 nogil:
    """Move all lanes side by side while all have events: the window's begin or end up, or on to the next event.

    A row is written at every step and kept if it is one.
    """
    cdef Py_ssize_t i[LANES]
    cdef Py_ssize_t j[LANES]
    cdef Py_ssize_t above[LANES]
    cdef Py_ssize_t out[LANES]
    cdef Py_ssize_t lane, step, steps, below, inside, stays
    cdef int64_t ticks, pairs = 0
    while True:
        steps = TILE
        for lane in range(LANES):
            i[lane], j[lane], above[lane], out[lane] = lanes.i[lane], lanes.j[lane], lanes.above[lane], lanes.out[lane]
            steps = min(steps, min(lanes.i_end[lane] - i[lane], second.shape[0] - above[lane]))
        if steps < MIN_STEPS:
            return pairs
        for step in range(steps):
            for lane in range(LANES):
                ticks = first[i[lane]]
                below = delay_of(second[j[lane]], ticks) < low
                inside = delay_of(second[above[lane]], ticks) <= high
                stays = (below | inside) - 1  # all bits if the window stands: the event is done with
                if write:
                    anchor[out[lane]] = i[lane]
                    begin[out[lane]] = j[lane]
                    number[out[lane]] = above[lane] - j[lane]
                    out[lane] += (above[lane] > j[lane]) & stays
                else:
                    pairs += (above[lane] - j[lane]) & stays
                j[lane] += below
                above[lane] += inside
                i[lane] -= stays
        for lane in range(LANES):
            lanes.i[lane], lanes.j[lane], lanes.above[lane], lanes.out[lane] = i[lane], j[lane], above[lane], out[lane]


cdef int64_t finish_all(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high, bint write, Lanes* lanes,
    int64_t[::1] anchor, int64_t[::1] begin, int64_t[::1] number,
) except -1 nogil:
    """Take each lane to its end, alone."""
    cdef Py_ssize_t lane, i, j, above
    cdef int64_t pairs = 0
    for lane in range(LANES):
        j = lanes.j[lane]
        above = lanes.above[lane]
        for i in range(lanes.i[lane], lanes.i_end[lane]):
            while above < second.shape[0] and delay_of(second[above], first[i]) <= high:
                above += 1
            while j < above and delay_of(second[j], first[i]) < low:
                j += 1
            pairs += above - j
            if write and above > j:
                anchor[lanes.out[lane]] = i
                begin[lanes.out[lane]] = j
                number[lanes.out[lane]] = above - j
                lanes.out[lane] += 1
        lanes.j[lane] = j
    return pairs


cdef Py_ssize_t close_up(
    Lanes* lanes, Py_ssize_t i_begin, Py_ssize_t rows, int64_t[::1] x, int64_t[::1] y, int64_t[::1] z
) except -1 nogil:
    """Move the lanes' rows together, behind the rows that are there, and return their number; `z` may be None."""
    cdef Py_ssize_t place = rows - i_begin, here = i_begin
    cdef Py_ssize_t lane, k
    for lane in range(LANES):
        for k in range(place + here, lanes.out[lane]):
            x[rows] = x[k]
            y[rows] = y[k]
            if z is not None:
                z[rows] = z[k]
            rows += 1
        here = lanes.i_end[lane]
    return rows


def spread_partners(
    const int64_t[::1] anchor not None,
    const int64_t[::1] begin not None,
    const int64_t[::1] number not None,
    int64_t[::1] index_first not None,
    int64_t[::1] index_second not None,
):
    """Write a row for each pair from rows of `find_partners`; return how many, or -1 if they do not fit."""
    cdef Py_ssize_t row, k = 0
    cdef int64_t j
    if begin.shape[0] != anchor.shape[0] or number.shape[0] != anchor.shape[0]:
        raise ValueError("anchor, begin and number must have one length")
    with nogil:
        for row in range(anchor.shape[0]):
            if number[row] > min(index_first.shape[0], index_second.shape[0]) - k:
                k = -1
                break
            for j in range(begin[row], begin[row] + number[row]):
                index_first[k] = anchor[row]
                index_second[k] = j
                k += 1
    return k


# --- one partner at most ------------------------------------------------------------------------------------------
def match_pairs(
    const int64_t[::1] first not None,
    const int64_t[::1] second not None,
    int64_t low,
    int64_t high,
    int64_t[::1] index_first,
    int64_t[::1] index_second,
    int64_t[::1] state not None,
):
    """Give each event its one partner; write a row for each pair unless the arrays for them are None.

    `state` receives the index of `second` that the next event of `first` would look at.

    Return the number of pairs, or -1 if a stream is not sorted or leaves +-2^62 ticks.
    """
    cdef Py_ssize_t n = first.shape[0]
    cdef bint write = index_first is not None
    cdef int64_t pairs
    check_window(low, high)
    if write != (index_second is not None):
        raise ValueError("index_first and index_second are both arrays or both None")
    if write and (index_first.shape[0] < n or index_second.shape[0] < n):
        raise ValueError("index_first and index_second need as many places as first has events")
    if state.shape[0] != 1:
        raise ValueError("state needs one place")
    with nogil:
        pairs = scan_one(first, second, low, high, write, index_first, index_second, state)
    return pairs


cdef int64_t scan_one(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high, bint write,
    int64_t[::1] index_first, int64_t[::1] index_second, int64_t[::1] state,
) except? -2 nogil:
    """Take the streams tile by tile; return the pairs, or -1."""
    cdef Py_ssize_t size = first.shape[0] + second.shape[0]
    cdef int64_t shift = low + (high - low) // 2
    cdef Py_ssize_t i = 0, j = 0, i_seen = 0, total = 0, i_end, total_end
    cdef int64_t pairs = 0
    cdef Lanes lanes
    while total < size:
        total_end = min(total + TILE, size)
        i_end = split(first, second, shift, total_end)
        if not is_sorted(first, i_seen, i_end) or not is_sorted(second, total - i_seen, total_end - i_end):
            return -1
        place_one(first, second, low, high, i, j, i_end, total_end - i_end, pairs, &lanes)
        if write:
            step_one(first, second, low, high, True, &lanes, index_first, index_second)
            finish_one(first, second, low, high, True, &lanes, index_first, index_second)
            pairs = close_up(&lanes, i, pairs, index_first, index_second, None)
        else:
            pairs += step_one(first, second, low, high, False, &lanes, index_first, index_second)
            pairs += finish_one(first, second, low, high, False, &lanes, index_first, index_second)
        i = lanes.i[lanes.used - 1]
        j = lanes.j[lanes.used - 1]
        i_seen = i_end
        total = total_end
    state[0] = j
    return pairs


cdef int place_one(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high,
    Py_ssize_t i, Py_ssize_t j, Py_ssize_t i_end, Py_ssize_t j_end, Py_ssize_t rows, Lanes* lanes,
) except -1 nogil:
    """Cut a tile into lanes at gaps: where no event before can pair with one after, the scan passes in any case."""
    cdef int64_t shift = low + (high - low) // 2
    cdef Py_ssize_t begin = i + j, i_begin = i
    cdef Py_ssize_t lane, cut, walked
    lanes.used = 1
    for lane in range(LANES):
        if 0 < lane == lanes.used:
            cut = begin + (i_end + j_end - begin) * lane // LANES
            i = max(i, split(first, second, shift, cut))
            j = max(j, cut - i)
            for walked in range(MAX_WALK):
                if i >= i_end or j >= j_end:
                    break
                if (i == 0 or delay_of(second[j], first[i - 1]) > high) and (j == 0 or delay_of(second[j - 1], first[i]) < low):
                    lanes.used += 1
                    break
                if delay_of(second[j], first[i]) > shift:
                    i += 1
                else:
                    j += 1
        if lane >= lanes.used:
            i, j = i_end, j_end
        if lane > 0:
            lanes.i_end[lane - 1] = i
            lanes.j_end[lane - 1] = j
        lanes.i[lane] = i
        lanes.j[lane] = j
        lanes.out[lane] = rows + i - i_begin
    lanes.i_end[LANES - 1] = i_end
    lanes.j_end[LANES - 1] = j_end
    return 0


cdef inline int64_t step_one(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high, bint write, Lanes* lanes,
    int64_t[::1] index_first, int64_t[::1] index_second,
) except -1 nogil:
    """Move all lanes side by side while all have events: the earlier event is passed over, or both are a pair."""
    cdef Py_ssize_t i[LANES]
    cdef Py_ssize_t j[LANES]
    cdef Py_ssize_t out[LANES]
    cdef Py_ssize_t lane, step, steps, i_moves, j_moves
    cdef int64_t delay, pairs = 0
    while True:
        steps = TILE
        for lane in range(LANES):
            i[lane], j[lane], out[lane] = lanes.i[lane], lanes.j[lane], lanes.out[lane]
            steps = min(steps, min(lanes.i_end[lane] - i[lane], lanes.j_end[lane] - j[lane]))
            pairs -= i[lane] + j[lane]
        if steps < MIN_STEPS:
            for lane in range(LANES):
                pairs += i[lane] + j[lane]
            return pairs
        for step in range(steps):
            for lane in range(LANES):
                delay = delay_of(second[j[lane]], first[i[lane]])
                i_moves = delay >= low
                j_moves = delay <= high
                if write:
                    index_first[out[lane]] = i[lane]
                    index_second[out[lane]] = j[lane]
                    out[lane] += i_moves & j_moves
                i[lane] += i_moves
                j[lane] += j_moves
        for lane in range(LANES):
            pairs += i[lane] + j[lane] - steps  # a pair moves both indices in one step
            lanes.i[lane], lanes.j[lane], lanes.out[lane] = i[lane], j[lane], out[lane]


cdef int64_t finish_one(
    const int64_t[::1] first, const int64_t[::1] second, int64_t low, int64_t high, bint write, Lanes* lanes,
    int64_t[::1] index_first, int64_t[::1] index_second,
) except -1 nogil:
    """Take each lane to its end, alone."""
    cdef Py_ssize_t lane, i, j
    cdef int64_t delay, pairs = 0
    for lane in range(LANES):
        i, j = lanes.i[lane], lanes.j[lane]
        while i < lanes.i_end[lane] and j < lanes.j_end[lane]:
            delay = delay_of(second[j], first[i])
            if low <= delay <= high:
                if write:
                    index_first[lanes.out[lane]] = i
                    index_second[lanes.out[lane]] = j
                    lanes.out[lane] += 1
                pairs += 1
            i += delay >= low
            j += delay <= high
        lanes.i[lane], lanes.j[lane] = i, j
    return pairs
