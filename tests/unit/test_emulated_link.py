"""The virtual clock and the two units on one link."""

import zlib

import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.link_model import CHUNK_PULSES, LinkModel
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1

START = b"ARM\nSTART\n"
STREAM = b"*rst;nim;time 0;timestamp;counts?\r\n"


def make(seed=1, **changes):
    run = LinkRun(LinkParameters(**changes), seed=seed)
    return EmulatedGenericTx(light=run), EmulatedSFifteenTdc1(light=run)


def records(tx, first, n):
    reply = tx.receive(b"REC? %d %d\n" % (first, n))
    head, rest = reply.split(b"\n", 1)
    assert head.startswith(b"OK "), head
    assert zlib.crc32(rest[:-4]) == int.from_bytes(rest[-4:], "little")
    return int(head.split()[2]), rest[:-4]


def both(tx, rx, *, n_pulses=3 * CHUNK_PULSES, records_at_a_time=1 << 20, events_at_a_time=1 << 16, events_first=True):
    """Read both ends in turns until each has enough."""
    have, body, stream = 0, b"", b""
    n_bytes = 60_000
    while have < n_pulses or len(stream) < n_bytes:
        if events_first:
            stream += rx.read_stream(events_at_a_time)
        if have < n_pulses:
            n, piece = records(tx, have, min(records_at_a_time, n_pulses - have))
            have, body = have + n, body + piece
        stream += rx.read_stream(events_at_a_time)
    return body, stream[:n_bytes]


def started(seed=1, **changes):
    tx, rx = make(seed, **changes)
    tx.receive(START)
    rx.receive(STREAM)
    return tx, rx


def test_same_seed_same_bytes_whatever_the_reading():
    first = both(*started())
    assert first[0]
    assert both(*started(), records_at_a_time=99_998, events_at_a_time=4000, events_first=False) == first
    assert both(*started(), records_at_a_time=4_000_000, events_at_a_time=100_000) == first
    tx, rx = make()
    rx.receive(STREAM)
    tx.receive(START)
    assert both(tx, rx) == first


def test_another_seed_gives_other_bytes():
    body, stream = both(*started(seed=1))
    other_body, other_stream = both(*started(seed=2))
    assert body != other_body
    assert stream != other_stream


def test_eavesdropper_changes_nothing_of_what_is_prepared():
    body, stream = both(*started())
    tapped_body, tapped_stream = both(*started(eavesdropper="intercept-resend"))
    assert body == tapped_body
    assert stream != tapped_stream


def test_clock_stands_still_until_both_ends_take_part():
    tx, rx = make()
    assert rx.read_stream(4096) == b""
    tx.receive(START)
    assert records(tx, 0, 100) == (0, b"")
    rx.receive(b"timestamp;")
    assert records(tx, 0, 100) == (0, b"")
    rx.receive(b"counts?;")
    assert records(tx, 0, 100)[0] == 100
    assert rx.read_stream(4096)


def test_receiver_alone_waits():
    _, rx = make()
    rx.receive(STREAM)
    assert rx.read_stream(4096) == b""


def test_reader_that_stops_holds_the_other_end_and_nothing_is_lost():
    tx, rx = started(detector_efficiency=1.0, loss_db=0.0)
    have = 0
    while (n := records(tx, have, 1 << 20)[0]) > 0:
        have += n
    assert 0 < have < 16 * CHUNK_PULSES
    while records(tx, have, 100)[0] == 0:
        assert rx.read_stream(1 << 16)


def test_stop_darkens_the_fibre():
    tx, rx = started()
    while len(rx.read_stream(1 << 20)) < 20_000:
        pass
    tx.receive(b"STOP\n")
    chunks = [len(rx.read_stream(1 << 20)) for _ in range(40)]
    assert 0 < max(chunks[30:]) < 1000


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_both_ends_start_again_in_any_order(order):
    """A new run begins cleanly, the same bytes as the second run of another link with the same seed."""

    def again(order):
        tx, rx = started()
        both(tx, rx)
        ends = (lambda: tx.receive(b"STOP\n" + START), lambda: rx.receive(STREAM))
        for index in order:
            ends[index]()
        return both(tx, rx)

    second = again(order)
    assert second == again((0, 1))
    assert second != both(*started())


def test_receiver_that_starts_again_waits_for_the_transmitter():
    tx, rx = started()
    both(tx, rx)
    rx.receive(STREAM)
    assert rx.read_stream(4096) == b""
    held = tx.receive(b"STAT?\n")
    assert tx.receive(b"STAT?\n") == held
    tx.receive(b"STOP\n" + START)
    assert both(tx, rx)[0]


def test_transmitter_that_starts_again_waits_while_the_receiver_sees_the_dark():
    tx, rx = started()
    both(tx, rx)
    tx.receive(b"STOP\n" + START)
    for _ in range(20):
        rx.read_stream(1 << 20)
    assert rx.read_stream(1 << 20)
    assert records(tx, 0, 100) == (0, b"")
    rx.receive(STREAM)
    assert both(tx, rx)[0]


def test_pace_holds_the_clock():
    now = [100.0]
    run = LinkRun(LinkParameters(), seed=1, pace=2.0, now_s=lambda: now[0])
    run.start_transmitter(LinkParameters())
    run.start_receiver()
    chunks = 0
    for _ in range(21):
        while run.next_events() is not None:
            chunks += 1
        run.records.forget(run.records.end)
        now[0] += 0.05
    assert chunks == int(1.0 * 2.0 * 20e6 / CHUNK_PULSES) + 1


def test_transmitter_settings_reach_the_light():
    dim, bright = make(dark_count_rate_hz=0.0), make(dark_count_rate_hz=0.0)
    dim[0].receive(b"CONF mean_photon_number 0.01,0.001,0\n")
    sizes = []
    for tx, rx in (dim, bright):
        tx.receive(START)
        rx.receive(STREAM)
        sizes.append(len(rx.read_stream(1 << 20)))
    assert sizes[0] * 20 < sizes[1]


def test_late_clicks_of_a_chunk_come_with_the_next_and_times_rise():
    model = LinkModel(LinkParameters(jitter_ps=1e6, dead_time_ns=0.0, loss_db=0.0, detector_efficiency=1.0), seed=1)
    last = -1
    for _ in range(3):
        chunk = model.next_chunk()
        assert (chunk.ticks[1:] > chunk.ticks[:-1]).all()
        assert chunk.ticks[0] > last
        assert chunk.ticks[-1] < chunk.horizon_ticks
        last = chunk.horizon_ticks - 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"pulse_rate_hz": 30_000_000},
        {"mean_photon_number": (0.1, 0.2, 0.3)},
        {"intensity_probability": (0.5, 0.5, 0.5)},
        {"misalignment": -0.1},
        {"loss_db": float("nan")},
        {"eavesdropper": "photon-number-splitting"},
    ],
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))) as caught:
        LinkParameters(**wrong)
    assert caught.value.remedy
