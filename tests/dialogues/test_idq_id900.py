"""Words of the Time Controller's manual and of IDQ's examples, both ways: the driver and the emulator hear and say them."""

import json
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
import zmq
from dialogue import expect_dialogue

from qkdhw.drivers import open_unit
from qkdhw.drivers.idq_data_link import AcquisitionStatus, ChannelStream, DataLink, MergedStreams, address_beside
from qkdhw.errors import CommandRefusedError, ConfigurationError, NonMonotonicTimeError, UnitError, WireFormatError
from qkdhw.model import EventKind
from qkdhw.transport import open_transport
from qkdhw_emulators.units.idq_id900 import EmulatedIdqId900
from qkdhw_emulators.world import VirtualClock, World

IDENTITY = (b"*IDN?", b"ID Quantique,ID900,2007042T010,2.10.0")


def driver(*turns):
    return expect_dialogue("zmq", [IDENTITY, *turns])


def test_identity():
    with driver(IDENTITY) as url, open_unit("idq-id900", url) as unit:
        info = unit.identify()
        assert (info.vendor, info.model, info.serial_number, info.firmware) == (
            "ID Quantique", "ID900", "2007042T010", "2.10.0",
        )  # fmt: skip


def test_an_identity_of_another_form_is_kept_whole():
    turns = [(b"*IDN?", b"Time Controller ID1000 rev 3")] * 2
    with expect_dialogue("zmq", turns) as url, open_unit("idq-id900", url) as unit:
        info = unit.identify()
        assert (info.vendor, info.model, info.firmware) == ("ID Quantique", "ID1000", "Time Controller ID1000 rev 3")


def test_another_instrument_is_refused():
    with (
        expect_dialogue("zmq", [(b"*IDN?", b"ACME,TOASTER,1,1.0")]) as url,
        pytest.raises(UnitError, match="no ID Quantique Time Controller"),
    ):
        open_unit("idq-id900", url)


# What is set, what the driver sends, what the unit answers, what it asks back, and the value that comes of it.
@pytest.mark.parametrize(
    ("settings", "turns", "told"),
    [
        (
            {"threshold_v": {1: 1.0}},
            [(b"INPU1:THRE 1.000000V", b"0.999424V"), (b"INPU1:THRE?", b"0.999424V")],
            {"threshold_v": {1: 0.999424}},
        ),
        (
            {"threshold_v": {4: -0.5}},
            [(b"INPU4:THRE -0.500000V", b""), (b"INPU4:THRE?", b"-499.712 mV")],
            {"threshold_v": {4: -0.499712}},
        ),
        ({"input_enabled": {2: True}}, [(b"INPU2:ENAB ON", b"ON"), (b"INPU2:ENAB?", b"ON")], {"input_enabled": {2: True}}),
        ({"edge": {3: "FALLING"}}, [(b"INPU3:EDGE FALLING", b""), (b"INPU3:EDGE?", b"FALL")], {"edge": {3: "FALLING"}}),
        ({"clock_source": "EXTERNAL"}, [(b"DEVI:SYNC EXTERNAL", b""), (b"DEVI:SYNC?", b"EXT")], {"clock_source": "EXTERNAL"}),
        (
            {"delay_ps": {1: 1000}},
            [(b"DELA1:LINK INPU1;:DELA1:VALU 1000", b"INPU1;1000TB"), (b"DELA1:VALU?", b"1000TB")],
            {"delay_ps": {1: 1000}},
        ),
        (
            {"record_width_ps": 3 * 10**12},
            [(b"REC:PWID 3000000000000", b""), (b"REC:PWID?", b"3000 GTB")],
            {"record_width_ps": 3 * 10**12},
        ),
        ({"record_count": 0}, [(b"REC:NUM INF", b"INF"), (b"REC:NUM?", b"INF")], {"record_count": 0}),
        (
            {"counter_gate_ms": {1: 100}},
            [(b"INPU1:COUN:INTE 100", b"100"), (b"INPU1:COUN:INTE?", b"100")],
            {"counter_gate_ms": {1: 100}},
        ),
    ],
)  # fmt: skip
def test_settings(settings, turns, told):
    with driver(*turns) as url, open_unit("idq-id900", url) as unit:
        assert unit.configure(settings) == told


@pytest.mark.parametrize(
    ("answer", "code"),
    [(b"SCPI_ERR_INVALID_CMD", "SCPI_ERR_INVALID_CMD"), (b"OFF;SCPI_ERR_PARAM_TYPE", "SCPI_ERR_PARAM_TYPE"),
     (b"No connection to INPU9", ""), (b"Recalibration failed", "")],
)  # fmt: skip
def test_errors_come_in_place_of_the_answer(answer, code):
    with driver((b"INPU1:EDGE RISING", answer)) as url, open_unit("idq-id900", url) as unit:
        with pytest.raises(CommandRefusedError) as caught:
            unit.edge[1] = "RISING"
        assert (caught.value.command, caught.value.code) == ("INPU1:EDGE RISING", code)


@pytest.mark.parametrize(
    "answer", [b"0.5W", b"0,5V", b"nanV", b"__import__('os')", b"1e999V", b"0.5 V V", b"", b"\xff\xfe"]
)
def test_what_is_no_voltage_is_refused_twice(answer):
    turns = [(b"INPU1:THRE?", answer), IDENTITY, (b"INPU1:THRE?", answer)]
    with driver(*turns) as url, open_unit("idq-id900", url) as unit, pytest.raises(WireFormatError):
        unit.threshold_v[1]


def test_histogram():
    turns = [(b"HIST2:DATA?", b"[0,12,345]"), (b"HIST1:DATA?", b"[]"), (b"HIST2:FLUS", b"Flushed Histogram!")]
    with driver(*turns) as url, open_unit("idq-id900", url) as unit:
        np.testing.assert_array_equal(unit.read_histogram(2), [0, 12, 345])
        assert unit.read_histogram(1).size == 0
        unit.clear_histogram(2)


@pytest.mark.parametrize("answer", [b"[1,2", b"1,2]", b"[1,,2]", b"[-1]", b"[1.5]", b"[x for x in ()]"])
def test_what_is_no_histogram_is_refused(answer):
    turns = [(b"HIST1:DATA?", answer), IDENTITY, (b"HIST1:DATA?", answer)]
    with driver(*turns) as url, open_unit("idq-id900", url) as unit, pytest.raises(WireFormatError):
        unit.read_histogram(1)


def test_a_value_that_cannot_be_set_sends_nothing():
    with driver() as url, open_unit("idq-id900", url) as unit:
        for settings in ({"threshold_v": {5: 0.1}}, {"threshold_v": 2.5}, {"edge": "BOTH"}, {"count": 1}):
            with pytest.raises(ConfigurationError):
                unit.configure(settings)


# --- the emulator hears the manual, IDQ's examples and the client of another laboratory --------------------------------
def emulated(pace=None):
    world = World(seed=7, clock=VirtualClock(pace=pace))
    return EmulatedIdqId900(world), world


def say(unit, *messages):
    return [unit.receive(message.encode()).decode() for message in messages]


def test_the_manual_s_rules_of_syntax():
    unit, _ = emulated()
    assert say(unit, "INPUT1:ENABLE OFF", "input1:enable?", "INPUt1:ENABle", "INPU1:ENAB?") == [
        "OFF",
        "OFF",
        "ON",
        "ON",
    ]
    assert say(unit, "INPUt1:THREshold 1", "INPUt1:THREshold 1000mV", "INPUt1:THREshold 1V") == ["0.999424V"] * 3
    assert say(unit, "RECord:DURation 3000 GTB", "REC:DUR?") == ["3000000000000TB"] * 2


def test_idq_s_example_of_a_streamed_acquisition():
    unit, _ = emulated()
    assert say(
        unit, "REC:TRIG:ARM:MODE MANUal", "REC:ENABle ON", "REC:STOP", "REC:NUM INF", "REC:NUMber?",
        "REC:PWID 1000000000000;PPER 1000000400000", "RAW1:ERRORS:CLEAR", "RAW1:REF:LINK NONE", "RAW1:SEND ON",
        "REC:STAGe?", "REC:PLAY", "REC:STAGe?", "RAW1:ERRORS?",
    ) == [
        "MANUAL", "ON", "Stopped", "INF", "INF", "1000000000000TB;1000000400000TB", "Errors cleared", "NONE", "ON",
        "IDLE", "Playing", "PLAYing", "0",
    ]  # fmt: skip
    service = unit.further_ports["data-link"][0]

    def ask(text):
        return json.loads(service.receive(text.encode()))

    assert ask("list") == []
    name = ask("start-stream --channel 1 --address 10.98.99.7 --stream-port 4242")["id"]
    assert ask("list") == [name]
    assert ask(f"status --id {name}") == {
        "acquisitions_count": 0, "errors": [], "inactivity": 0.0, "timestamps_count": 0,
    }  # fmt: skip
    assert ask(f"stop --id {name}")["status"]["errors"] == []
    assert "description" in ask(f"status --id {name}")["error"]


def test_what_was_observed_on_hardware():
    """The commands and slices of the client of the Measurement Standards Laboratory of New Zealand."""
    unit, _ = emulated()
    assert say(unit, "INPUT1:ENABLE OFF;COUPLING DC;EDGE RISING;THRESHOLD 1V;SELECT UNSHAPED;RESYNCPOLICY AUTO;"
               ":INPUT1:COUNTER:INTEGRATIONTIME 1000;MODE CYCLE;:DELAY1:INPORT:LINK INPU1;:DELAY1:VALUE 500") == [
        "OFF;DC;RISING;0.999424V;UNSHAPED;AUTO;1000;CYCLE;INPU1;500TB"
    ]  # fmt: skip
    (reply,) = say(unit, "INPUT1:STATE?;:DELAY1:VALUE?")
    enab, coup, edge, thre, sele, resy, time, mode, delay = reply.upper().split(";")
    assert enab.endswith("OFF")
    assert (coup[5:], edge[5:], thre[5:], sele[5:], resy[5:]) == ("DC", "RISING", "0.999424V", "UNSHAPED", "AUTO")
    assert (float(time[30:]), mode[5:], delay) == (1000.0, "CYCLE", "500TB")
    say(unit, "START:THRESHOLD 0.5V;:START:DELAY 1000")
    (reply,) = say(unit, "START:STATE?")
    enab, coup, edge, thre, sele, delay, time, mode = reply.upper().split(";")
    assert (thre[5:], delay[5:], float(time[30:]), mode[5:]) == ("0.499712V", "1000TB", 1000.0, "CYCLE")
    value, address = say(unit, "DELAY1:STATE?")[0].rstrip(";").split(";")
    assert (value[12:], address[10:]) == ("500TB", "INPU1")
    sync, resolution = say(unit, "DEVICE:STATE?")[0].upper().split(";")
    assert (sync[12:].strip(), resolution[4:]) == ("INTERNAL", "LOWRES")
    assert say(unit, "INPUT1:COUNTER:RESET", "INPUT1:HIRES:ERROR:CLEAR", "INPUT1:HIRES:ERROR?", ":HIST1:FLUSH") == [
        "Counter value set to 0 ", "Cleared Highres errors", "0", "Flushed Histogram!",
    ]  # fmt: skip
    assert say(unit, ":TSGE8:ENABLE ON")[0].endswith("ON")
    assert abs(int(say(unit, "INPUT2:COUNTER?")[0]) - 50_000) < 1500


# --- the stream service may lie too ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "answer", "error"),
    [
        ("acquisitions", b'{"a": 1}', WireFormatError),
        ("acquisitions", b"[1, 2]", WireFormatError),
        ("acquisitions", b'["a --id b"]', WireFormatError),
        ("acquisitions", b"[", WireFormatError),
        ("acquisitions", b"\xff\xfe", WireFormatError),
        ("acquisitions", b"", WireFormatError),
        ("acquisitions", b'{"error": {"description": "busy"}}', CommandRefusedError),
        ("acquisitions", b'{"error": "busy"}', CommandRefusedError),
        ("start", b'{"id": 5}', WireFormatError),
        ("start", b'{"id": "a b"}', WireFormatError),
        ("start", b"null", WireFormatError),
        ("status", b"[]", WireFormatError),
        ("status", b'{"acquisitions_count": -1, "timestamps_count": 0}', WireFormatError),
        ("status", b'{"acquisitions_count": true, "timestamps_count": 0}', WireFormatError),
        ("status", b'{"acquisitions_count": 1, "timestamps_count": 1e99}', WireFormatError),
        ("status", b'{"acquisitions_count": 1, "timestamps_count": 0, "errors": 7}', WireFormatError),
        ("stop", b'{"acquisitions_count": 1, "timestamps_count": 0}', WireFormatError),
        ("stop", b"", WireFormatError),
    ],
)
def test_what_the_service_may_not_answer(call, answer, error):
    calls = {
        "acquisitions": (b"list", lambda link: link.acquisitions()),
        "start": (
            b"start-stream --address h --channel 1 --stream-port 2",
            lambda link: link.start_stream("h", 1, 2, with_index=False),
        ),
        "status": (b"status --id a:1", lambda link: link.status("a:1")),
        "stop": (b"stop --id a:1", lambda link: link.stop("a:1")),
    }
    question, ask = calls[call]
    times = 2 if answer in {b"[", b"\xff\xfe"} else 1  # what is no JSON was spoilt on the way: it is asked again
    with (
        expect_dialogue("zmq", [(question, answer)] * times) as url,
        closing(DataLink(url, timeout_s=1.0)) as link,
        pytest.raises(error),
    ):
        ask(link)


def test_what_the_service_answers():
    status = b'{"acquisitions_count": 2, "errors": [{"description": "late"}, "odd"], "inactivity": 0.1, "timestamps_count": 9}'
    turns = [
        (b"list", b'["10.98.99.7:5556"]'),
        (
            b"start-stream --address 10.98.99.7 --channel 2 --stream-port 4243 --with-ref-index",
            b'{"id":"10.98.99.7:5557"}',
        ),
        (b"status --id 10.98.99.7:5557", status),
        (b"stop --id 10.98.99.7:5557", b'{"status": ' + status + b"}"),
    ]
    told = AcquisitionStatus(2, 9, ("late", "odd"))
    with expect_dialogue("zmq", turns) as url, closing(DataLink(url, timeout_s=1.0)) as link:
        assert link.acquisitions() == ["10.98.99.7:5556"]
        assert link.start_stream("10.98.99.7", 2, 4243, with_index=True) == "10.98.99.7:5557"
        assert link.status("10.98.99.7:5557") == told
        assert link.stop("10.98.99.7:5557") == told


@contextmanager
def streams(*channels):
    """Yield sockets that play the service's streams, and what merges them: 1000 ps wide, 1500 ps apart."""
    context = zmq.Context()
    sockets, merged = [], MergedStreams({}, width_ps=1000, period_ps=1500, reference_period_ps=0)
    for channel in channels:
        sockets.append(context.socket(zmq.PAIR))
        port = sockets[-1].bind_to_random_port("tcp://127.0.0.1")
        merged.streams[channel] = ChannelStream(f"h:{channel}", open_transport(f"zmq+pair://127.0.0.1:{port}"))
    try:
        yield sockets, merged
    finally:
        merged.close()
        context.destroy(linger=0)


def stamps(*times):
    return np.array(times, "<u8").tobytes()


def test_sub_acquisitions_wait_for_every_channel_and_for_nothing_else():
    with streams(4, 2) as ((four, two), merged):
        four.send(stamps(10, 30))
        four.send(stamps())
        assert merged.next_block(timeout_s=0.05) is None
        two.send(stamps(10, 20, 1000))
        block = merged.next_block(timeout_s=1.0)
        assert block.time_ticks.tolist() == [10, 10, 20, 30, 1000, 1000]
        assert block.channel.tolist() == [2, 4, 2, 4, 2, 0]
        assert block.kind.tolist() == [0, 0, 0, 0, 0, EventKind.GAP_BEGIN]
        two.send(stamps())
        block = merged.next_block(timeout_s=1.0)
        assert block.time_ticks.tolist() == [1500, 2500]
        assert block.kind.tolist() == [EventKind.GAP_END, EventKind.GAP_BEGIN]
        two.send(stamps(7))
        four.send(stamps(8))
        deadline_s = time.monotonic() + 5
        while not merged.drain() and time.monotonic() < deadline_s:
            pass
        assert merged.next_block(timeout_s=1.0).time_ticks.tolist() == [3000, 3007, 3008, 4000]


@pytest.mark.parametrize(
    ("message", "error", "says"),
    [
        (stamps(5, 4), NonMonotonicTimeError, "timestamp 1 of sub-acquisition 0 of channel 1 is earlier"),
        (stamps(5, 1001), WireFormatError, "timestamp 1 of sub-acquisition 0 of channel 1 is after its end"),
        (stamps(2**64 - 1), WireFormatError, "after its end"),
        (stamps(1)[:7], WireFormatError, "whole timestamps"),
        (stamps(1) + b"x", WireFormatError, "whole timestamps"),
    ],
)
def test_timestamps_that_cannot_be_true(message, error, says):
    with streams(1) as ((one,), merged):
        one.send(message)
        with pytest.raises(error, match=says):
            merged.next_block(timeout_s=1.0)


def test_addresses_of_what_is_beside_a_unit():
    beside = address_beside
    assert beside("zmq://10.0.0.9:5555", "127.0.0.1", 6060, "data-link") == "zmq://127.0.0.1:6060"
    assert beside("zmq://10.0.0.9:5555?heartbeat=off", "::1", 4243, "stream-2") == "zmq+pair://[::1]:4243"
    assert beside("zmq://127.0.0.1:7555", "127.0.0.1", 4243, "stream-2") == "zmq+pair://127.0.0.1:6243"
    assert beside("emu://#idq-1", "", 4243, "stream-2") == "emu://?port=stream-2#idq-1"
    assert beside("emu://idq-id900?seed=2", "", 6060, "data-link") == "emu://idq-id900?seed=2&port=data-link"
