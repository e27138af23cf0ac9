"""GTX/1 dialogues, byte for byte."""

import zlib

import numpy as np
import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.generic_tx import GenericTx
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    EventOverflowError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.transport import open_transport

OPENING = [(b"IDN?\n", b"OK Acme,TX-1,0042,1.2.0,GTX/1\n")]


def opened(url):
    return GenericTx(open_transport(url), timeout_s=1.0)


def records(first, n, body, *, crc=None):
    return f"OK {first} {n}\n".encode() + body + (zlib.crc32(body) if crc is None else crc).to_bytes(4, "little")


def test_identity_and_settings_as_quantised():
    turns = [
        *OPENING,
        (b"CONF pulse_rate_hz 30000000\n", b"OK 30030030\n"),
        (b"CONF mean_photon_number 0.5,0.1,0.00002\n", b"OK 0.5,0.1,2e-05\n"),
        (b"CONF key_basis_probability 0.9\n", b"OK 0.899994\r\n"[:-2] + b"\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        got = unit.configure(
            {"pulse_rate_hz": 30_000_000, "mean_photon_number": (0.5, 0.1, 2e-5), "key_basis_probability": 0.9}
        )
    assert got == {
        "pulse_rate_hz": 30_030_030,
        "mean_photon_number": (0.5, 0.1, 2e-5),
        "key_basis_probability": 0.899994,
    }


def test_a_whole_run():
    body = bytes([0x21, 0x9A, 0x04])
    turns = [
        *OPENING,
        (b"ARM\n", b"OK\n"),
        (b"START\n", b"OK\n"),
        (b"REC? 0 4\n", b"OK 0 0\n" + b"\0" * 4),
        (b"REC? 0 4\n", records(0, 4, body[:2])),
        (b"STOP\n", b"OK\n"),
        (b"REC? 4 1000\n", records(4, 1, body[2:])),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.arm()
        unit.start()
        first = unit.read_preparation(5)
        unit.stop()
        second = unit.read_preparation(1000)
        assert len(unit.read_preparation(1000, timeout_s=0.0)) == 0
    assert (first.first_pulse_index, first.record.tolist()) == (0, [1, 2, 10, 9])
    assert (second.first_pulse_index, second.record.tolist()) == (4, [4])


def test_leaving_stops_what_was_started():
    turns = [*OPENING, (b"ARM\n", b"OK\n"), (b"START\n", b"OK\n"), (b"STOP\n", b"OK\n")]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.arm()
        unit.start()


def test_records_with_a_wrong_crc_are_asked_for_again():
    body = bytes([0x01])
    turns = [
        *OPENING,
        (b"REC? 0 2\n", records(0, 2, body, crc=1)),
        (b"REC? 0 2\n", records(0, 2, body)),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        assert unit.read_preparation(2).record.tolist() == [1, 0]


def test_a_crc_that_stays_wrong():
    turns = [*OPENING, *[(b"REC? 0 2\n", records(0, 2, b"\x01", crc=1))] * 3]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit, pytest.raises(WireFormatError, match="CRC"):
        unit.read_preparation(2)


@pytest.mark.parametrize(
    "answer",
    [records(2, 2, b"\x01"), records(0, 4, b"\x01\x01"), records(0, 2, b"\xc1"), records(0, 1, b"\x11"), b"OK\n"],
    ids=["other pulse", "too many", "intensity 3", "filled last nibble", "nothing"],
)
def test_records_that_cannot_be_true(answer):
    with (
        expect_dialogue("tcp", [*OPENING, (b"REC? 0 2\n", answer)]) as url,
        opened(url) as unit,
        pytest.raises(WireFormatError),
    ):
        unit.read_preparation(2)


def test_lost_records():
    status = b"OK state=running pulses=900 buffered=100 lost=640 clock=locked alarms=1\n"
    turns = [*OPENING, (b"REC? 0 2\n", b"ERR 5 gone\n"), (b"STAT?\n", status), (b"MON?\n", b"OK\n")]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit, pytest.raises(EventOverflowError) as caught:
        unit.read_preparation(2)
    assert caught.value.lost == 640


def test_status():
    turns = [
        *OPENING,
        (b"STAT?\n", b"OK state=idle pulses=12 buffered=0 lost=0 clock=free alarms=22\n"),
        (b"MON?\n", b"OK laser_bias_ma=31.5 attenuator_db=-1e-3\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        status = unit.read_status()
    assert status.state == "idle"
    assert status.counters == {"pulses": 12, "buffered": 0, "lost": 0}
    assert status.monitors == {"laser_bias_ma": 31.5, "attenuator_db": -1e-3, "clock_locked": 0.0}
    assert status.alarms == ("clock_unlocked", "alarm_bit_5")


@pytest.mark.parametrize(
    "answer",
    [
        b"OK state=idle\n",
        b"OK state=odd pulses=12 buffered=0 lost=0 clock=free alarms=0\n",
        b"OK state=idle pulses=-1 buffered=0 lost=0 clock=free alarms=0\n",
        b"OK state=idle pulses=1 buffered=0 lost=0 clock=free alarms=zz\n",
        b"OK state=idle pulses=1 pulses=1 buffered=0 lost=0 clock=free alarms=0\n",
        b"OK  \n",
        b"okay\n",
        b"OK \xff\n",
        b"\n",
        b"x" * 1100,
    ],
)
def test_a_status_that_is_none(answer):
    with (
        expect_dialogue("tcp", [*OPENING, (b"STAT?\n", answer)]) as url,
        opened(url) as unit,
        pytest.raises(WireFormatError),
    ):
        unit.read_status()


def test_refusals():
    turns = [
        *OPENING,
        (b"ARM\n", b"ERR 3 running\n"),
        (b"CONF key_basis_probability 0.75\n", b"ERR 2 range\n"),
        (b"CLR\n", b"OK done\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        with pytest.raises(UnitStateError, match="running"):
            unit.arm()
        with pytest.raises(CommandRefusedError) as caught:
            unit.configure({"key_basis_probability": 0.75})
        assert (caught.value.code, caught.value.command) == ("2", "CONF key_basis_probability 0.75")
        with pytest.raises(WireFormatError):
            unit.clear_alarms()


@pytest.mark.parametrize(
    "settings",
    [
        {"power": 1},
        {"pulse_rate_hz": 1e6},
        {"pulse_rate_hz": True},
        {"mean_photon_number": 0.5},
        {"mean_photon_number": "0.5,0.1,0"},
        {"key_basis_probability": float("nan")},
    ],
)
def test_settings_of_the_wrong_form_send_nothing(settings):
    with expect_dialogue("tcp", OPENING) as url, opened(url) as unit, pytest.raises(ConfigurationError):
        unit.configure(settings)


def test_another_unit_is_named():
    with (
        expect_dialogue("tcp", [(b"IDN?\n", b"OK Acme,VOA\n")]) as url,
        open_transport(url) as link,
        pytest.raises(UnitError, match="Acme,VOA"),
    ):
        GenericTx(link)


def test_no_record_bytes_in_the_error_of_an_answer_out_of_step():
    secret = np.random.default_rng(3).integers(48, 57, 40).astype(np.uint8).tobytes()
    turns = [*OPENING, (b"REC? 0 2\n", secret + b"\n")]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit, pytest.raises(WireFormatError) as caught:
        unit.read_preparation(2)
    assert secret[:8].decode() not in str(caught.value)
