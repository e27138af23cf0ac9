"""The emulated ID900: its syntax, its records and timestamps, its faults."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.line import Line
from qkdhw_emulators.units.idq_id900 import VALUES, EmulatedIdqId900
from qkdhw_emulators.world import VirtualClock, World

WIDTH, PERIOD = 10**11, 10**11 + 400_000


class Seconds:
    """Real time that a test moves."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def make(pace=None, **rates):
    seconds = Seconds()
    world = World(seed=7, clock=VirtualClock(pace=pace, monotonic_s=seconds))
    unit = EmulatedIdqId900(world)
    for name, rate_hz in rates.items():
        world.set_condition(name, rate_hz)
    return unit, seconds


def say(unit, *messages):
    return [unit.receive(message.encode()).decode() for message in messages]


def ask(unit, text):
    return json.loads(unit.further_ports["data-link"][0].receive(text.encode()))


def begin(unit, *channels, more=""):
    for channel in channels:
        ask(unit, f"start-stream --address 127.0.0.1 --channel {channel} --stream-port {4241 + channel}{more}")
        say(unit, f"RAW{channel}:SEND ON")
    say(unit, f"REC:ENAB ON;NUM INF;PWID {WIDTH};PPER {PERIOD}", "REC:PLAY")


def take(unit, channel):
    stream = unit.further_ports[f"stream-{channel}"][0]
    message = stream.next_message()
    if message is not None:
        stream.sent()
    return None if message is None else np.frombuffer(message, "<u8").astype(np.int64)


def spelled(header, draw):
    """Write a header in any mix of case, in long or short forms."""
    words = []
    for word in header.replace("#", "1").replace("[:INPOrt]", draw(st.sampled_from(["", ":INPOrt"]))).split(":"):
        short = "".join(c for c in word if not c.islower())
        chosen = draw(st.sampled_from([word, short]))
        words.append("".join(c.lower() if draw(st.booleans()) else c.upper() for c in chosen))
    return ":".join(words)


@given(st.sampled_from(VALUES), st.data())
def test_any_spelling_asks_for_the_same(value, data):
    unit, _ = make()
    plain = value.header.replace("#", "1").replace("[:INPOrt]", "")
    assert say(unit, spelled(value.header, data.draw) + "?") == say(unit, plain.upper() + "?")
    assert "ERR" not in say(unit, plain.upper() + "?")[0]


@given(st.text(max_size=30))
def test_any_text_is_answered(text):
    unit, _ = make()
    assert unit.receive(text.encode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("INPU1:ENAB MAYBE", "SCPI_ERR_PARAM_TYPE"),
        ("INPU1:EDGE", "SCPI_ERR_PARAM_COUNT"),
        ("INPU5:ENAB?", "SCPI_ERR_INVALID_CMD"),
        ("INPU0:ENAB?", "SCPI_ERR_INVALID_CMD"),
        ("INPUT1:ENABL?", "SCPI_ERR_INVALID_CMD"),
        ("NONSENSE", "SCPI_ERR_INVALID_CMD"),
        ("", "SCPI_ERR_INVALID_CMD"),
        ("RAW1:STOP:LINK INPU9", "No connection to INPU9"),
        ("INPU1:THRE 5V", "SCPI_ERR_PARAM_TYPE"),
        ("DELA1:VALU 2TTB", "SCPI_ERR_PARAM_TYPE"),
        ("INPU1:ENAB OFF;COUP AC;EDGE?", "OFF;AC;RISING"),
        ("INPU1:ENAB OFF;:INPU2:ENAB?", "OFF;ON"),
        ("INPU1:ENAB OFF;INPU2:ENAB?;EDGE?", "OFF;SCPI_ERR_INVALID_CMD"),
        ("REC:NUM INF;NUM?", "INF;INF"),
        ("DEVI:CONF:LOAD INIT", "INIT"),
        ("DEVI:CONF:LOAD NONE", "SCPI_ERR_PARAM_TYPE"),
        ("HIST1:BCOU 4;:HIST1:DATA?", "4;[0,0,0,0]"),
        (f"INPU{'9' * 5000}:ENAB?", "SCPI_ERR_INVALID_CMD"),
        (f"INPU{'9' * 5000}:COUN?", "SCPI_ERR_INVALID_CMD"),
        (f"REC:NUM {'9' * 5000}", "SCPI_ERR_PARAM_TYPE"),
        (f"REC:PWID {'9' * 400}", "SCPI_ERR_PARAM_TYPE"),
    ],
)
def test_answers(message, answer):
    assert say(make()[0], message) == [answer]


def test_thresholds_are_taken_in_steps():
    unit, _ = make()
    told = [float(text[:-1]) for text in say(unit, *(f"INPU1:THRE {volt / 100}" for volt in range(-200, 201)))]
    assert np.allclose(np.array(told) / 0.001952, np.round(np.array(told) / 0.001952), atol=1e-6)
    assert np.abs(np.array(told) - np.arange(-200, 201) / 100).max() < 0.0012


def test_timestamps_restart_with_every_sub_acquisition_and_none_is_lost_but_in_the_gaps():
    unit, _ = make(rate_1_hz=1e3)
    begin(unit, 1)
    times = np.concatenate([take(unit, 1) + k * PERIOD for k in range(20)])
    pulses = 1009 + 10**9 * np.arange(2001)  # one of them, the hundredth, is in a gap
    np.testing.assert_array_equal(times, pulses[pulses % PERIOD < WIDTH])
    assert len(times) == 2000


def test_in_real_time_a_sub_acquisition_comes_when_it_is_over():
    unit, seconds = make(pace=1.0, rate_1_hz=1e3)
    begin(unit, 1)
    stream = unit.further_ports["stream-1"][0]
    assert take(unit, 1) is None
    assert stream.wait_s() == pytest.approx(0.1)
    seconds.now_s += 0.1001
    assert len(take(unit, 1)) == 100
    assert take(unit, 1) is None
    seconds.now_s += 0.05
    say(unit, "REC:STOP")
    assert len(take(unit, 1)) == 50
    assert take(unit, 1) is None
    assert stream.wait_s() is None
    assert say(unit, "REC:STAG?") == ["IDLE"]


def test_an_input_that_is_off_sends_empty_messages_and_one_that_is_delayed_later_times():
    unit, _ = make()
    say(unit, "INPU1:ENAB OFF", "DELA2:LINK INPU2;:DELA2:VALU 5000")
    begin(unit, 1, 2)
    assert len(take(unit, 1)) == 0
    assert take(unit, 2)[0] == 2 * 1009 + 5000


def test_timestamps_with_reference_and_index():
    unit, _ = make(rate_start_hz=1e6, rate_1_hz=1e4)
    say(unit, "RAW1:REF:LINK STAR")
    begin(unit, 1, more=" --with-ref-index")
    since, index = take(unit, 1).reshape(-1, 2).T
    assert since.max() < 10**6
    np.testing.assert_array_equal(index * 10**6 + since, 1009 + np.arange(1000) * 10**8)


def test_all_channels_end_with_the_same_sub_acquisition():
    unit, _ = make()
    begin(unit, 1, 2)
    for _ in range(3):
        take(unit, 1)
    take(unit, 2)
    say(unit, "REC:STOP")
    assert [take(unit, 1) is None, *(take(unit, 2) is None for _ in range(3))] == [True, False, False, True]


def test_a_new_acquisition_knows_nothing_of_the_record_before():
    unit, _ = make()
    begin(unit, 1)
    take(unit, 1)
    say(unit, "REC:STOP")
    name = ask(unit, "list")[0]
    ask(unit, f"stop --id {name}")
    ask(unit, "start-stream --address 127.0.0.1 --channel 1 --stream-port 4242")
    assert take(unit, 1) is None
    say(unit, "REC:PLAY")
    assert take(unit, 1)[0] == 1009


def test_what_a_slow_client_leaves_is_lost_and_told():
    unit, seconds = make(pace=1.0)
    begin(unit, 1)
    seconds.now_s += 10.0
    assert take(unit, 1) is not None
    (name,) = ask(unit, "list")
    (error,) = ask(unit, f"status --id {name}")["errors"]
    assert "dropped" in error["description"]


@pytest.mark.parametrize(
    "text",
    ["", "bogus", "status", "status --id", "stop --id nobody", "start-stream --channel 1", "start-stream 7",
     "start-stream --channel 9 --address a --stream-port 1", "start-stream --channel x --address a --stream-port 1",
     "start-stream --channel 1 --address 'a b' --stream-port 1", "start-stream --channel 1 --address a --stream-port 0",
     'status --id "'],
)  # fmt: skip
def test_what_the_service_does_not_understand_is_an_error(text):
    assert ask(make()[0], text)["error"]["description"]


def test_a_channel_streams_once():
    unit, _ = make()
    begin(unit, 1)
    again = ask(unit, "start-stream --address 127.0.0.1 --channel 1 --stream-port 4242")
    assert "in use" in again["error"]["description"]


def test_faults():
    unit, _ = make()
    unit.faults.add(Fault.OVERFLOW)
    begin(unit, 1)
    assert len(take(unit, 1)) == 2500
    assert say(unit, "RAW1:ERRORS?", "RAW1:ERRORS:CLEAR", "RAW1:ERRORS?") == ["1", "Errors cleared", "0"]
    unit.faults.clear()
    unit.faults.add(Fault.NON_MONOTONE)
    assert (np.diff(take(unit, 1)) < 0).any()
    unit.faults.clear()
    unit.faults.add(Fault.FULL_BUFFER)
    assert take(unit, 1) is None
    unit.faults.clear()
    unit.faults.add(Fault.STOP_UNANSWERED, count=1)
    (name,) = ask(unit, "list")
    assert unit.further_ports["data-link"][0].receive(f"stop --id {name}".encode()) == b""
    assert ask(unit, "list") == [name]
    unit.faults.add(Fault.STUCK_VALUE)
    assert say(unit, "INPU1:ENAB OFF", "INPU1:ENAB?") == ["ON", "ON"]


def test_power_cycle_forgets_settings_and_the_record_but_not_the_service():
    unit, _ = make()
    say(unit, "INPU1:THRE 1V")
    begin(unit, 1)
    unit.power_cycle()
    assert say(unit, "INPU1:THRE?", "REC:STAG?", "RAW1:SEND?") == ["0.499712V", "IDLE", "OFF"]
    assert len(ask(unit, "list")) == 1
    assert take(unit, 1) is None


def test_counters_count_gates_or_on_and_on():
    unit, seconds = make(pace=1.0, rate_1_hz=1e4)
    assert int(say(unit, "INPU1:COUN?")[0]) == pytest.approx(10_000, abs=600)
    assert say(unit, "INPU1:COUN?") == say(unit, "INPU1:COUN?")
    say(unit, "INPU1:COUN:MODE ACCUM", "INPU1:COUN:RESE")
    seconds.now_s += 2.5
    assert say(unit, "INPU1:COUN?") == ["25000"]
    assert say(unit, "INPU1:ENAB OFF", "INPU1:COUN?") == ["OFF", "0"]


def test_a_line_gives_messages_whole_and_once():
    unit, _ = make()
    line = Line(unit, unit.world, faults=["split", "truncate", "duplicate"])
    line.feed(b"INPU1:THRE?")
    assert [(each.data, each.end) for each in line.take()] == [(b"0.499712V", True)]
    line.faults.clear()
    line.faults.add(Fault.DISCONNECT, count=1)
    line.feed(b"INPU1:THRE?")
    assert [(each.data, each.hang_up) for each in line.take()] == [(b"", True)]
