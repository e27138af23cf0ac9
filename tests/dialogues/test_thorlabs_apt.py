"""APT dialogues: the examples of the protocol's description (issue 37) and what a real K10CR1 was recorded to send.

The examples of the description go to bay 1 of a rack (address 22h); a unit on USB is 50h, the rest of the bytes is as
printed.
"""

import pytest
from dialogue import expect_dialogue
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.drivers.apt_packets import Message, data_bytes_after, decode_packet, encode_packet, find_packet
from qkdhw.drivers.thorlabs_apt import ThorlabsK10Cr1, ThorlabsMpc320
from qkdhw.errors import CommandRefusedError, UnitError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.units.thorlabs_apt import EmulatedThorlabsK10Cr1, EmulatedThorlabsMpc320


def hexed(text):
    return bytes.fromhex(text)


def identity(model):
    """HW_GET_INFO of the description, but for the model and the address."""
    return (
        hexed("0600 5400 81 50 89539A05")
        + model.ljust(8, b"\0")
        + hexed("2C00 02013900")
        + bytes(60)
        + hexed("010003000100")
    )


REQ_INFO = hexed("0500 0000 50 01")
SYNCHRONISING = hexed("9204 0000 50 01  1200 0000 50 01") + REQ_INFO
K10CR1_MOVED = hexed("6404 0e00 81 50 0100 68aaa001 0000 0000 30000080")  # recorded


def opening(model):
    return [(SYNCHRONISING, identity(model)), (REQ_INFO, identity(model))]


def mount(url):
    return ThorlabsK10Cr1(open_transport(url), timeout_s=1.0)


def paddles(url):
    return ThorlabsMpc320(open_transport(url), timeout_s=1.0)


@pytest.mark.parametrize(
    ("sent", "packet"),
    [
        ("0500 0000 50 01", encode_packet(Message.HW_REQ_INFO)),
        ("1002 0102 50 01", encode_packet(Message.MOD_SET_CHANENABLESTATE, 1, 2)),
        ("1104 0100 50 01", encode_packet(Message.MOT_REQ_POSCOUNTER, 1)),
        ("4304 0100 50 01", encode_packet(Message.MOT_MOVE_HOME, 1)),
        ("5304 0600 D0 01 0100 400D0300", encode_packet(Message.MOT_MOVE_ABSOLUTE, data=hexed("0100 400D0300"))),
        ("6504 0101 50 01", encode_packet(Message.MOT_MOVE_STOP, 1, 1)),
        ("6A04 0101 50 01", encode_packet(Message.MOT_MOVE_JOG, 1, 1)),
        ("9204 0000 50 01", encode_packet(Message.MOT_ACK_USTATUSUPDATE)),
    ],
)
def test_packets_to_a_unit(sent, packet):
    assert packet == hexed(sent)


def test_packets_from_a_unit():
    status = hexed("9104 0e00 81 50 0100 00000001 0001 FFFF 07000000")
    assert data_bytes_after(status[:6]) == 14
    assert decode_packet(status[:6], status[6:]).channel == 1
    assert find_packet(b"\x06\x00\x54" + status + identity(b"ION001"), Message.HW_GET_INFO)[0].data[4:10] == b"ION001"


@pytest.mark.parametrize(
    "header",
    [
        "0600 5400 81 22",  # from a bay, not a unit on USB
        "0600 5400 D0 01",  # to a unit
        "0600 5500 81 50",  # too long
        "1204 0000 81 50",  # data of no length
        "1204 0600 01 50",  # no data
        "3412 0000 01 50",  # no such message
        "FFFF FFFF FF FF",
    ],
)
def test_headers_that_no_unit_sends(header):
    with pytest.raises(WireFormatError):
        data_bytes_after(hexed(header))


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_the_identity_is_found_behind_anything(before, after):
    packet, end = find_packet(before + identity(b"K10CR1") + after, Message.HW_GET_INFO)
    whole = before + identity(b"K10CR1") + after
    assert len(packet.data) == 84
    assert whole[end - 84 : end] == packet.data


def test_opening_and_identity():
    with expect_dialogue("serial", opening(b"K10CR1")) as url, mount(url) as unit:
        info = unit._info
    assert (info.vendor, info.model, info.serial_number, info.firmware) == ("Thorlabs", "K10CR1", "94000009", "57.1.2")


def test_opening_in_the_middle_of_something_else():
    noise = K10CR1_MOVED[3:] + b"\x06\x00\x54\x00" + K10CR1_MOVED
    turns = [(SYNCHRONISING, noise + identity(b"K10CR1")), (REQ_INFO, identity(b"K10CR1"))]
    with expect_dialogue("serial", turns) as url, mount(url):
        pass


def test_another_unit_is_named():
    turns = opening(b"ION001")
    with expect_dialogue("serial", turns) as url, open_transport(url) as link, pytest.raises(UnitError, match="ION001"):
        ThorlabsK10Cr1(link)


def test_position_with_reports_between():
    turns = [
        *opening(b"K10CR1"),
        (hexed("1104 0100 50 01"), K10CR1_MOVED + hexed("4404 0100 01 50") + hexed("1204 0600 81 50 0100 400D0300")),
    ]
    with expect_dialogue("serial", turns) as url, mount(url) as unit:
        assert unit.read_position() == pytest.approx(200_000 * 3 / 409_600, abs=1e-6)


def test_an_answer_about_another_channel_is_none():
    turns = [
        *opening(b"K10CR1"),
        (hexed("1104 0100 50 01"), hexed("1204 0600 81 50 0200 400D0300")),
        *opening(b"K10CR1"),
        (hexed("1104 0100 50 01"), hexed("1204 0600 81 50 0100 00000000")),
    ]
    with expect_dialogue("serial", turns) as url, mount(url) as unit:
        assert unit.read_position() == 0.0


def test_velocity_is_set_among_its_neighbours():
    old = "0100 00000000 B0350000 CDCCCC00"
    new = "0100 00000000 B0350000 ED4E5602"  # 5.35 degrees a second
    turns = [
        *opening(b"K10CR1"),
        (hexed("1404 0100 50 01"), hexed("1504 0E00 81 50" + old)),
        (hexed("1304 0E00 D0 01" + new + "1404 0100 50 01"), hexed("1504 0E00 81 50" + new)),
    ]
    with expect_dialogue("serial", turns) as url, mount(url) as unit:
        assert unit.configure({"velocity_deg_per_s": 5.35}) == {"velocity_deg_per_s": 5.35}


def test_refusals_and_alarms():
    report = hexed("8100 4400 81 50")
    turns = [
        *opening(b"K10CR1"),
        (hexed("1404 0100 50 01"), report + hexed("1404 0700") + b"busy".ljust(64, b"\0")),
        *opening(b"K10CR1"),
        (hexed("1104 0100 50 01"), report + hexed("0000 0900") + bytes(64) + hexed("1204 0600 81 50 0100 00000000")),
        (hexed("8004 0100 50 01"), hexed("8104 0e00 81 50 0100 01000000 00000000 07400080")),
    ]
    with expect_dialogue("serial", turns) as url, mount(url) as unit:
        with pytest.raises(CommandRefusedError, match="busy") as caught:
            unit.velocity_deg_per_s  # noqa: B018
        assert (caught.value.command, caught.value.code) == ("MOT_REQ_VELPARAMS", "7")
        assert unit.read_position() == 0.0
        assert unit.read_status().alarms == ("unit_error_9", "motion_error")
        unit.clear_alarms()


def test_homed_is_believed_once_the_unit_says_so_for_this_time():
    status = "8104 0e00 81 50 0100 00000000 00000000 {}"
    homing, homed = hexed(status.format("00020080")), hexed(status.format("00040080"))
    report, poll = hexed("4404 0100 01 50"), hexed("8004 0100 50 01")
    ask_enabled = (hexed("1102 0100 50 01"), hexed("1202 0101 01 50"))
    home = hexed("4304 0100 50 01") + poll
    first = [ask_enabled, (home, homing), (poll, report + homed)]
    second = [ask_enabled, (home, homed), (poll, homing), (poll, report + homed)]
    with expect_dialogue("serial", [*opening(b"K10CR1"), *first, *second]) as url, mount(url) as unit:
        unit.home()
        unit.home()


def test_paddle_parameters():
    turns = [
        *opening(b"MPC320"),
        (hexed("3105 0000 50 01"), hexed("3205 0C00 81 50 0000 1400 0000 1900 1900 1900")),
        (
            hexed("3005 0C00 D0 01 0000 3200 0000 1900 1900 1900  3105 0000 50 01"),
            hexed("3205 0C00 81 50 0000 3200 0000 1900 1900 1900"),
        ),
    ]
    with expect_dialogue("serial", turns) as url, paddles(url) as unit:
        assert unit.configure({"velocity_percent": 50}) == {"velocity_percent": 50}


def test_a_paddle_is_switched_on_and_turned():
    asked = [(hexed(f"1102 0{bit}00 50 01"), hexed(f"1202 0{bit}02 01 50")) for bit in (1, 2, 4)]
    status = "9104 0e00 81 50 0400 {} 0000 0000 00040080"
    turns = [
        *opening(b"MPC320"),
        *asked,
        (hexed("1002 0401 50 01  5304 0600 D0 01 0400 26030000  9004 0400 50 01"), hexed(status.format("10000000"))),
        (hexed("9004 0400 50 01"), hexed("6404 0400 01 50" + status.format("26030000"))),
        (hexed("9004 0400 50 01"), hexed(status.format("26030000"))),
    ]
    with expect_dialogue("serial", turns) as url, paddles(url) as unit:
        assert unit.set_retarder(3, 100.0) == pytest.approx(806 * 170 / 1370, abs=1e-6)


@pytest.mark.parametrize(
    ("unit", "sent", "heard"),
    [
        (EmulatedThorlabsK10Cr1, "1104 0100 50 01", "1204 0600 81 50 0100 00000000"),
        (EmulatedThorlabsK10Cr1, "1004 0600 D0 01 0100 400D0300 1104 0100 50 01", "1204 0600 81 50 0100 400D0300"),
        (
            EmulatedThorlabsK10Cr1,
            "1304 0E00 D0 01 0100 00000000 B0350000 CDCCCC00 1404 0100 50 01",
            "1504 0E00 81 50 0100 00000000 B0350000 CDCCCC00",
        ),
        (
            EmulatedThorlabsK10Cr1,
            "1604 1600 D0 01 0100 0100 E8030000 00000000 B0350000 CDCCCC00 0200  1704 0100 50 01",
            "1804 1600 81 50 0100 0100 E8030000 00000000 B0350000 CDCCCC00 0200",
        ),
        (EmulatedThorlabsK10Cr1, "1002 0102 50 01 1102 0100 50 01", "1202 0102 01 50"),
        (EmulatedThorlabsK10Cr1, "8004 0100 50 01", "8104 0e00 81 50 0100 00000000 00000000 00010080"),
        (EmulatedThorlabsMpc320, "1002 0501 50 01 1102 0400 50 01 1102 0200 50 01", "1202 0401 01 50 1202 0202 01 50"),
        (
            EmulatedThorlabsMpc320,
            "3005 0C00 D0 01 0000 3200 0000 1900 1900 1900 3105 0000 50 01",
            "3205 0C00 81 50 0000 3200 0000 1900 1900 1900",
        ),
        (EmulatedThorlabsMpc320, "9004 0200 50 01", "9104 0e00 81 50 0200 00000000 0000 0000 02010000"),
    ],
)
def test_the_emulator_answers_so(unit, sent, heard):
    assert unit().receive(hexed(sent)) == hexed(heard)


def test_the_emulator_tells_its_identity_as_in_the_description():
    told = EmulatedThorlabsK10Cr1().receive(REQ_INFO)
    assert len(told) == 90
    assert told[:6] == identity(b"K10CR1")[:6]
    assert told[10:18] == b"K10CR1\0\0"
    assert told[24:84] == bytes(60)
