import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.link_model import CHUNK_PULSES
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.world import World, serial_number


def ask(unit, line):
    reply = unit.receive(line.encode() + b"\n")
    assert reply.endswith(b"\n")
    assert reply.count(b"\n") == 1
    return reply[:-1].decode()


def records_of(reply):
    head, rest = reply.split(b"\n", 1)
    ok, first, n = head.split(b" ")
    assert ok == b"OK"
    body, crc = rest[:-4], rest[-4:]
    assert len(body) == (int(n) + 1) // 2
    assert zlib.crc32(body) == int.from_bytes(crc, "little")
    return int(first), int(n), body


def running(**kwargs):
    unit = EmulatedGenericTx(**kwargs)
    assert unit.receive(b"ARM\nSTART\n") == b"OK\nOK\n"
    return unit


def test_identity():
    vendor, model, serial, firmware, protocol = (
        ask(EmulatedGenericTx(World(seed=7)), "IDN?").removeprefix("OK ").split(",")
    )
    assert (vendor, model, serial, firmware, protocol) == ("qkdhw", "GTX-EMU", serial_number(7), "1.0", "GTX/1")


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("CONF pulse_rate_hz 20000000", "OK 20000000"),
        ("CONF pulse_rate_hz 30000000", "OK 31250000"),
        ("CONF pulse_rate_hz 5000000000", "OK 5000000000"),
        ("CONF mean_photon_number 0.5,0.1,0.0002", "OK 0.5,0.1,0.0002"),
        ("CONF key_basis_probability 0.5", "OK 0.5"),
        ("CONF key_basis_probability 0.95", "OK 0.9499969482421875"),
        ("CONF key_basis_probability 0.05", "OK 0.0500030517578125"),
        ("CONF intensity_probability 0.5,0.25,0.25", "OK 0.5,0.25,0.25"),
        (
            "CONF intensity_probability 0.999998,0.000001,0.000001",
            "OK 0.999969482421875,0.0000152587890625,0.0000152587890625",
        ),
    ],
)
def test_settings_are_quantised(line, reply):
    unit = EmulatedGenericTx()
    assert ask(unit, line) == reply
    assert ask(unit, "CONF? " + line.split(" ")[1]) == reply


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", 1),
        ("idn?", 1),
        ("FOO", 1),
        (" IDN?", 1),
        ("IDN? x", 2),
        ("IDN? ", 2),
        ("CONF", 2),
        ("CONF colour red", 2),
        ("CONF? colour", 2),
        ("CONF pulse_rate_hz 999999", 2),
        ("CONF pulse_rate_hz 5000000001", 2),
        ("CONF pulse_rate_hz 1e7", 2),
        ("CONF pulse_rate_hz -20000000", 2),
        ("CONF mean_photon_number 0.5,0.1", 2),
        ("CONF mean_photon_number 0.1,0.5,0", 2),
        ("CONF mean_photon_number 0.5,0.5,0", 2),
        ("CONF mean_photon_number 2.1,0.5,0", 2),
        ("CONF mean_photon_number nan,0.5,0", 2),
        ("CONF intensity_probability 0.5,0.3,0.1", 2),
        ("CONF intensity_probability 0.5,0.5,0", 2),
        ("CONF key_basis_probability 0.96", 2),
        ("CONF key_basis_probability inf", 2),
        ("START", 3),
        ("STOP", 3),
        ("REC? 1 10", 2),
        ("REC? 0 0", 2),
        ("REC? 0 4194305", 2),
        ("REC? 0", 2),
        ("REC? -2 4", 2),
        ("REC? 99999999999999999999 4", 2),
        ("X" * 256, 4),
        ("IDN?" + " " * 252, 4),
        ("\xff\xfe", 1),
    ],
)
def test_errors(line, code):
    reply = EmulatedGenericTx().receive(line.encode("latin-1") + b"\n").decode("ascii")
    assert reply.startswith(f"ERR {code} ")
    assert reply.count("\n") == 1


def test_longest_line_is_256_bytes_with_its_end_and_the_next_line_is_unharmed():
    unit = EmulatedGenericTx()
    assert unit.receive(b"X" * 255 + b"\n").startswith(b"ERR 1 ")
    assert unit.receive(b"X" * 5000) == b""
    assert unit.receive(b"\nIDN?\r\n").split(b"\n")[1].startswith(b"OK qkdhw,")


# (state, command) -> reply begins with, next state
TABLE = {
    ("idle", "ARM"): ("OK", "armed"),
    ("idle", "START"): ("ERR 3", "idle"),
    ("idle", "STOP"): ("ERR 3", "idle"),
    ("idle", "CONF key_basis_probability 0.5"): ("OK", "idle"),
    ("armed", "ARM"): ("ERR 3", "armed"),
    ("armed", "START"): ("OK", "running"),
    ("armed", "STOP"): ("OK", "idle"),
    ("armed", "CONF key_basis_probability 0.5"): ("ERR 3", "armed"),
    ("running", "ARM"): ("ERR 3", "running"),
    ("running", "START"): ("ERR 3", "running"),
    ("running", "STOP"): ("OK", "idle"),
    ("running", "CONF key_basis_probability 0.5"): ("ERR 3", "running"),
    ("fault", "ARM"): ("ERR 3", "fault"),
    ("fault", "START"): ("ERR 3", "fault"),
    ("fault", "STOP"): ("ERR 3", "fault"),
    ("fault", "CONF key_basis_probability 0.5"): ("ERR 3", "fault"),
} | {(s, c): ("OK", s) for s in ("idle", "armed", "running") for c in ("IDN?", "STAT?", "MON?", "CLR", "REC? 0 2")}


@pytest.mark.parametrize(("state", "command"), TABLE)
def test_state_table(state, command):
    unit = EmulatedGenericTx(faults=[Fault.LASER_TEMPERATURE] if state == "fault" else ())
    unit.receive({"idle": b"", "armed": b"ARM\n"}.get(state, b"ARM\nSTART\n"))
    begins, then = TABLE[state, command]
    assert unit.receive(command.encode() + b"\n").decode("latin-1").startswith(begins)
    assert f"state={then} " in ask(unit, "STAT?")


def test_hardware_fault_latches_until_its_cause_is_gone():
    unit = EmulatedGenericTx(faults=[Fault.LASER_TEMPERATURE])
    ask(unit, "ARM")
    assert ask(unit, "START").startswith("ERR 6 ")
    assert ask(unit, "CLR") == "OK"
    assert ask(unit, "STAT?").endswith("alarms=04")
    unit.faults.clear()
    assert "state=fault" in ask(unit, "STAT?")
    ask(unit, "CLR")
    assert ask(unit, "STAT?") == "OK state=idle pulses=0 buffered=0 lost=0 clock=locked alarms=00"


def test_monitors():
    unit = EmulatedGenericTx()
    ask(unit, "CONF mean_photon_number 0.5,0.1,0.002")
    fields = dict(pair.split("=") for pair in ask(unit, "MON?").removeprefix("OK ").split(" "))
    assert [float(fields[f"mean_photon_number_{k}"]) for k in range(3)] == [0.5, 0.1, 0.002]
    assert set(fields) >= {"laser_bias_ma", "laser_temperature_c", "attenuator_db", "back_reflection_nw"}


def test_records_repeat_and_are_forgotten_only_when_a_later_one_is_asked_for():
    unit = running()
    first = unit.receive(b"REC? 0 1000\n")
    assert unit.receive(b"REC? 0 1000\n") == first
    _, n, body = records_of(unit.receive(b"REC? 500 1000\n"))
    assert n == 1000
    assert records_of(first)[2][250:] == body[:250]
    assert ask(unit, "REC? 498 2").startswith("ERR 5 ")
    assert f"buffered={CHUNK_PULSES - 500} " in ask(unit, "STAT?")


def test_odd_maximum_gives_an_even_number():
    unit = running()
    assert records_of(unit.receive(b"REC? 0 1001\n"))[1] == 1000
    assert records_of(unit.receive(b"REC? 0 1\n"))[1] == 0


def test_records_stay_after_stop_and_start_drops_them():
    unit = running()
    before = unit.receive(b"REC? 0 4000\n")
    assert ask(unit, "STOP") == "OK"
    assert unit.receive(b"REC? 0 4000\n") == before
    end = f"REC? {CHUNK_PULSES} 10\n".encode()
    assert records_of(unit.receive(end)) == (CHUNK_PULSES, 0, b"")
    unit.receive(b"ARM\nSTART\n")
    first, n, body = records_of(unit.receive(b"REC? 0 4000\n"))
    assert (first, n) == (0, 4000)
    assert body != records_of(before)[2]


def test_records_have_no_fourth_intensity_and_every_other_value():
    body = np.frombuffer(records_of(running().receive(b"REC? 0 4194304\n"))[2], np.uint8)
    assert sorted(set((body & 15).tolist()) | set((body >> 4).tolist())) == list(range(12))


def test_overrun_drops_the_oldest_counts_them_and_latches():
    run = LinkRun(LinkParameters(loss_db=40.0), seed=1)
    unit = running(light=run, faults=[Fault.RECORD_OVERRUN])
    run.start_receiver()
    ask(unit, "STAT?")
    for _ in range(18):
        run.next_events()
    assert f"pulses={18 * CHUNK_PULSES} buffered={16 * CHUNK_PULSES} lost={2 * CHUNK_PULSES}" in ask(unit, "STAT?")
    assert ask(unit, "STAT?").endswith("alarms=01")
    assert ask(unit, "REC? 0 10").startswith("ERR 5 ")
    assert records_of(unit.receive(f"REC? {2 * CHUNK_PULSES} 10\n".encode()))[1] == 10
    ask(unit, "CLR")
    assert ask(unit, "STAT?").endswith("alarms=00")


def test_without_the_fault_the_clock_waits_for_the_reader():
    run = LinkRun(LinkParameters(loss_db=40.0), seed=1)
    unit = running(light=run)
    run.start_receiver()
    chunks = 0
    while run.next_events() is not None:
        chunks += 1
    assert chunks == 16
    assert f"buffered={16 * CHUNK_PULSES} lost=0" in ask(unit, "STAT?")
    assert records_of(unit.receive(f"REC? {CHUNK_PULSES} 2\n".encode()))[1] == 2
    assert run.next_events() is not None


def test_silent_and_garbage():
    assert EmulatedGenericTx(faults=[Fault.SILENT]).receive(b"IDN?\n") == b""
    good = EmulatedGenericTx().receive(b"IDN?\n")
    bad = EmulatedGenericTx(faults=[Fault.GARBAGE]).receive(b"IDN?\n")
    assert len(bad) == len(good)
    assert bad != good


COMMANDS = st.sampled_from([
    b"IDN?\n", b"ARM\n", b"START\n", b"STOP\r\n", b"STAT?\n", b"MON?\n", b"CLR\n", b"REC? 0 64\n", b"REC? 32 7\n",
    b"CONF key_basis_probability 0.6\n", b"\n", b"Y" * 300 + b"\n", b"\x00\xff\n", b"half",
])  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(COMMANDS, max_size=12).map(b"".join), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_split_gives_the_same_answers(data, sizes):
    whole = EmulatedGenericTx(World(seed=5)).receive(data)
    unit, out, at = EmulatedGenericTx(World(seed=5)), b"", 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        out += unit.receive(data[at : at + size])
        at += size
    assert out == whole
    unit = EmulatedGenericTx(World(seed=5))
    assert b"".join(unit.receive(data[i : i + 1]) for i in range(len(data))) == whole


def test_power_cycle():
    unit = running()
    ask(unit, "STOP")
    ask(unit, "CONF key_basis_probability 0.5")
    unit.receive(b"ARM\nSTART\nREC? 0 2\nhalf a comm")
    unit.power_cycle()
    assert ask(unit, "STAT?") == "OK state=idle pulses=0 buffered=0 lost=0 clock=locked alarms=00"
    assert ask(unit, "CONF? key_basis_probability") == "OK 0.8099975585937500".rstrip("0")


def test_faults_of_the_unit():
    unit = EmulatedGenericTx()
    for fault in EmulatedGenericTx.unit_faults:
        assert fault in list(Fault)
    unit.faults.add(Fault.WRONG_IDENTITY)
    assert ask(unit, "IDN?") == "OK ACME,TOASTER,1,1.0,TOAST/1"
    unit.faults.clear()
    unit.faults.add(Fault.WRONG_FIRMWARE)
    assert ask(unit, "IDN?").endswith(",99.99,GTX/1")
    unit.faults.clear()
    unit.faults.add(Fault.CLOCK_UNLOCK)
    assert ask(unit, "STAT?").endswith("clock=free alarms=02")
    unit.faults.clear()
    assert ask(unit, "STAT?").endswith("clock=locked alarms=02")
    unit.faults.add(Fault.STUCK_VALUE)
    before = ask(unit, "CONF? pulse_rate_hz")
    assert ask(unit, "CONF pulse_rate_hz 1000000") == before


def test_conditions_are_declared_to_the_world():
    world = World(seed=5)
    unit = EmulatedGenericTx(world)
    assert world.conditions == EmulatedGenericTx.conditions
    world.set_condition("laser_temperature_c", 60.0)
    assert " laser_temperature_c=60 " in ask(unit, "MON?")
    unit.receive(b"ARM\n")
    assert ask(unit, "START").startswith("ERR 6 ")
