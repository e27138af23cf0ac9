"""A whole emulated bench from its file, its control socket, and the commands around both."""

import asyncio
import json
import signal
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from qkdhw import open_unit
from qkdhw.bench import open_bench, record_events
from qkdhw.bench.asynchronous import open_unit_async
from qkdhw.bench.discovery import discover
from qkdhw.errors import ConfigurationError, NotSupportedError, TransportClosedError, UnitError
from qkdhw.formats import open_events
from qkdhw.model import EventKind
from qkdhw_emulators.address import Place, ServedOn, place_of
from qkdhw_emulators.bench import serve_bench
from qkdhw_emulators.control import ask_control, control_socket
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.world import VirtualClock, World

BENCH = """
[units.transmitter]
name = "generic-tx"
url = "tcp://127.0.0.1:{port}"

[units.receiver]
name = "sfifteen-tdc1"
url = "serial://{folder}/tagger"
settings = {{ threshold_v = -0.5 }}

[units.attenuator]
name = "agilent-8156a"
url = "visa://TCPIP::127.0.0.1::hislip0,{hislip}::INSTR"
firmware = "1.02"
settings = {{ attenuation_db = 3.25 }}

[[wiring]]
unit = "receiver"
channel = 1
detector = "D0"
basis = "key"
bit = 0
"""


@pytest.fixture
def bench_file(tmp_path, free_port):
    file = tmp_path / "bench.toml"
    file.write_text(BENCH.format(port=free_port(), hislip=free_port(), folder=tmp_path))
    return file


@pytest.fixture
def free_port():
    import socket

    def found():
        with socket.create_server(("127.0.0.1", 0)) as server:
            return server.getsockname()[1]

    return found


def test_the_file_that_serves_a_bench_opens_it(bench_file):
    with serve_bench(bench_file) as served, open_bench(bench_file) as bench:
        assert set(served.urls) == {"transmitter", "receiver", "attenuator"}
        assert bench.settings["attenuator"] == {"attenuation_db": 3.25}
        assert served.lines["attenuator"].unit.receive(b":INP:ATT?\n") == b"3.250\n"
        tx, rx = bench.units["transmitter"], bench.units["receiver"]
        rx.start()
        tx.arm()
        tx.start()
        block = rx.read_block(20_000, timeout_s=5)
        assert set(np.unique(block.channel)) >= {1, 2, 3, 4}  # light: one fibre between the two
        assert len(tx.read_preparation(10_000)) > 0
        tx.stop()
        rx.stop()
        snapshot = json.loads(json.dumps(bench.snapshot()))
    assert snapshot["units"]["attenuator"]["settings"]["attenuation_db"] == 3.25
    assert snapshot["units"]["transmitter"]["identity"]["model"]
    assert snapshot["wiring"][0]["detector"] == "D0"


def test_without_the_fibre_there_are_only_dark_counts(bench_file):
    def rate_hz(bench):
        block = bench.units["receiver"].read_block(100_000, timeout_s=5)
        return (
            np.count_nonzero(block.kind == 0)
            / float((block.time_ticks[-1] - block.time_ticks[0]) * block.tick_ps)
            * 1e12
        )

    with serve_bench(bench_file) as served, open_bench(bench_file) as bench:
        served.lines["receiver"].world.set_condition("fibre_connected", 0)
        bench.units["transmitter"].arm()
        bench.units["receiver"].start()
        bench.units["transmitter"].start()
        dark_hz = rate_hz(bench)
        assert len(bench.units["transmitter"].read_preparation(10_000)) == 10_000  # it knows nothing of the fibre
        bench.units["receiver"].stop()
        bench.units["transmitter"].stop()
        served.lines["receiver"].world.set_condition("fibre_connected", 1)
        bench.units["transmitter"].arm()
        bench.units["receiver"].start()
        bench.units["transmitter"].start()
        assert rate_hz(bench) > 100 * dark_hz > 0


@pytest.mark.parametrize(("short", "model"), [("tdc1", "TDC1"), ("8156a", "HP8156A")])
def test_a_short_name_that_only_one_unit_has(short, model):
    with open_unit(short, f"emu://{short}") as unit:
        assert model in unit.identify().model
    with pytest.raises(ConfigurationError, match="no driver"):
        open_unit("sfifteen", "emu://tdc1")


def test_another_firmware_is_refused(bench_file):
    with serve_bench(bench_file) as served:
        served.lines["attenuator"].faults.parse("wrong-firmware")
        with pytest.raises(UnitError, match=r"units\.attenuator\.firmware"):
            open_bench(bench_file)


def test_the_world_is_changed_by_the_control_socket(tmp_path, bench_file):
    control = tmp_path / "control"
    world = World(clock=VirtualClock(pace=None))
    with serve_bench(bench_file, world) as served, control_socket(control, served.lines):
        assert control.stat().st_mode & 0o077 == 0
        state = ask_control(control, {"do": "list"})
        assert set(state["units"]) == {"transmitter", "receiver", "attenuator"}
        ask_control(control, {"do": "fault", "unit": "attenuator", "fault": "drop:count=1"})
        assert list(served.lines["attenuator"].faults) == ["drop"]
        ask_control(control, {"do": "clear", "unit": "attenuator"})
        assert not served.lines["attenuator"].faults
        ask_control(control, {"do": "advance", "seconds": 12.5})
        assert ask_control(control, {"do": "list"})["now_s"] == 12.5
        condition, value = next(iter(state["units"]["receiver"]["conditions"].items()))
        ask_control(control, {"do": "set", "unit": "receiver", "condition": condition, "value": value + 1})
        assert served.lines["receiver"].world.conditions[condition] == value + 1
    assert not control.exists()
    with pytest.raises(ConfigurationError, match="no emulated bench"):
        ask_control(control, {"do": "list"})


@pytest.mark.parametrize(
    "request_",
    [
        {}, {"do": "explode"}, {"do": "set", "unit": "nobody", "condition": "x", "value": 1}, {"do": "set", "unit": "receiver"},
        {"do": "set", "unit": "receiver", "condition": "no-such", "value": 1}, {"do": "advance", "seconds": -1},
        {"do": "fault", "unit": "receiver", "fault": "no-such"}, {"do": "clear", "unit": "receiver", "fault": "no-such"},
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_and_the_next_one_served(tmp_path, bench_file, request_):
    control = tmp_path / "control"
    with serve_bench(bench_file) as served, control_socket(control, served.lines):
        with pytest.raises(ConfigurationError):
            ask_control(control, request_)
        assert ask_control(control, {"do": "list"})["ok"]


def test_emulate_on_the_command_line_until_told_to_stop(tmp_path, bench_file):
    control = tmp_path / "control"
    qkdhw = [sys.executable, "-m", "qkdhw", "devices"]
    command = [*qkdhw, "emulate", "--bench", str(bench_file), "--control", str(control), "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as served:
        urls = json.loads(served.stdout.readline())
        with open_unit("agilent-8156a", urls["attenuator"]) as unit:
            assert unit.attenuation_db == 0.0
        done = subprocess.run(
            [*qkdhw, "world", str(control), "--fault", "attenuator:wrong-identity", "--json"],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert json.loads(done.stdout)["units"]["attenuator"]["faults"] == ["wrong-identity"]
        with pytest.raises(UnitError, match="not a"):
            open_unit("agilent-8156a", urls["attenuator"])
        served.send_signal(signal.SIGTERM)
        assert served.wait(20) == 0


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("tcp://127.0.0.1:5", Place(ServedOn.TCP, 5)),
        ("zmq://localhost:5555", Place(ServedOn.ZMQ, 5555)),
        ("emu://x", Place(ServedOn.EMU)),
        ("visa://TCPIP::127.0.0.1::hislip0,4880::INSTR", Place(ServedOn.HISLIP, 4880)),
        ("visa://TCPIP::127.0.0.1,1024::inst0::INSTR", Place(ServedOn.VXI11, 1024)),
        ("visa://TCPIP0::127.0.0.1::5025::SOCKET", Place(ServedOn.TCP, 5025)),
        ("visa://USB0::0x1313::0x804a::M1::0::INSTR", Place(ServedOn.USBTMC)),
    ],
)
def test_addresses_say_where_a_unit_is_to_be(url, place):
    assert place_of(url) == place


@pytest.mark.parametrize(
    "url", ["tcp://10.0.0.7:5", "visa://TCPIP::10.0.0.7::inst0::INSTR", "ftp://x", "visa://GPIB0::3::INSTR"]
)
def test_addresses_elsewhere_are_not_served(url):
    with pytest.raises(ConfigurationError):
        place_of(url)


def test_discovery_finds_usb_units_with_their_drivers_and_asks_none():
    world = World()
    with serve_unit(make_unit("idq-quantis", world), world, transport="usb") as served:
        before = served.line.fed_bytes
        found = [each for each in discover().found if each.way == "usb"]
        assert [each.drivers for each in found] == [("idq-quantis",)]
        assert served.line.fed_bytes == before
        with open_unit("idq-quantis", found[0].url) as unit:
            assert unit.identify().model


def test_discovery_hears_a_service_on_this_machine():
    from zeroconf import ServiceInfo, Zeroconf

    kind = "_scpi-raw._tcp.local."
    info = ServiceInfo(kind, f"attenuator.{kind}", addresses=[b"\x7f\x00\x00\x01"], port=5025)
    zeroconf = Zeroconf(interfaces=["127.0.0.1"])
    try:
        zeroconf.register_service(info)
        found = []
        for _ in range(4):  # the machine may be busy
            found = [e for e in discover(network_s=3.0, interfaces=["127.0.0.1"]).found if e.way == "network"]
            if found:
                break
    finally:
        zeroconf.close()
    assert [(each.url, each.description) for each in found] == [("tcp://127.0.0.1:5025", "attenuator")]


def test_units_in_an_asyncio_program_run_side_by_side():
    async def program():
        first = await open_unit_async("agilent-8156a", "emu://agilent-8156a?seed=1")
        second = await open_unit_async("agilent-8156a", "emu://agilent-8156a?seed=2")
        async with first, second:
            await asyncio.gather(first.configure({"attenuation_db": 3}), second.configure({"attenuation_db": 4}))
            both = await asyncio.gather(*(unit.read_setting("attenuation_db") for unit in (first, second) * 20))
            with pytest.raises(ConfigurationError):
                await first.configure({"attenuation_db": 400})
            with pytest.raises(AttributeError):
                first.fly  # noqa: B018
        with pytest.raises((TransportClosedError, RuntimeError)):
            await first.identify()
        return both

    assert asyncio.run(program()) == [3.0, 4.0] * 20


def test_an_asyncio_program_reads_blocks():
    async def program():
        world = World(clock=VirtualClock(pace=None))
        with serve_unit(make_unit("sfifteen-tdc1", world), world, transport="emu") as served:
            async with await open_unit_async("sfifteen-tdc1", served.url) as unit:
                await unit.start()
                seen = 0
                async for block in unit.blocks(max_events=100, timeout_s=2.0):
                    seen += len(block)
                    if seen > 300:
                        break
                await unit.stop()
        return seen

    assert asyncio.run(program()) > 300


def test_control_transfers_need_usb():
    with open_unit("agilent-8156a", "emu://agilent-8156a") as unit, pytest.raises(NotSupportedError):
        unit._link.control_in(0xC1, 1, 0, 0, 4)


def test_a_recording_of_events_has_a_snapshot_of_the_bench_beside_it(tmp_path, bench_file):
    file = tmp_path / "run.h5"
    with serve_bench(bench_file), open_bench(bench_file) as bench:
        transmitter = bench.units["transmitter"]
        transmitter.arm()
        transmitter.start()
        seen = []
        recorded = record_events(
            bench, "receiver", file, duration_s=0.3, on_progress=lambda events, seconds: seen.append((events, seconds))
        )
        with pytest.raises(ConfigurationError, match="attenuator"):
            record_events(bench, "attenuator", tmp_path / "no.h5", duration_s=0.1)
    assert file.stat().st_mode & 0o077 == 0
    events = sum(len(block) for block in open_events(file).read_blocks())
    assert events == recorded.events > 10_000
    assert seen[-1][0] == events + recorded.dummies_left_out
    snapshot = json.loads(recorded.snapshot.read_text())
    assert snapshot["units"]["attenuator"]["settings"]["attenuation_db"] == 3.25
    assert snapshot["counts"]["photons"] > 10_000
    assert snapshot["wiring"][0]["detector"] == "D0"
    assert snapshot["events"] == recorded.events
    kinds = np.concatenate([block.kind for block in open_events(file).read_blocks()])
    assert snapshot["counts"]["photons"] == np.count_nonzero(kinds == EventKind.PHOTON)  # of the file, not of the ring
    assert snapshot["unwritten_at_end"] == recorded.unwritten_at_end >= 0
    times = np.concatenate([block.time_ticks for block in open_events(file).read_blocks()])
    assert snapshot["span_ticks"] == times[-1] - times[0] > 0
    assert recorded.span_s == float((times[-1] - times[0]) * Fraction(snapshot["tick_ps"]) / 10**12)


def test_a_recording_is_written_over_only_when_asked(tmp_path, bench_file):
    file = tmp_path / "run.h5"
    with serve_bench(bench_file), open_bench(bench_file) as bench:
        bench.units["transmitter"].arm()
        bench.units["transmitter"].start()
        record_events(bench, "receiver", file, duration_s=0.05)
        before = file.read_bytes()
        with pytest.raises(ConfigurationError, match=r"run\.h5 and .*run\.h5\.json") as refused:
            record_events(bench, "receiver", file, duration_s=0.05)
        assert "overwrite=True" in refused.value.remedy
        assert bench.units["receiver"].read_status().state == "idle"
        file.unlink()
        with pytest.raises(ConfigurationError, match=r"^[^ ]*run\.h5\.json would"):
            record_events(bench, "receiver", file, duration_s=0.05)
        assert not file.exists()
        recorded = record_events(bench, "receiver", file, duration_s=0.05, overwrite=True)
        assert file.read_bytes() != before
    assert json.loads(recorded.snapshot.read_text())["events"] == recorded.events


@pytest.mark.parametrize(("name", "shows_losses"), [("run.h5", True), ("run.qutag", False)])
def test_a_recording_outlives_what_the_unit_loses(tmp_path, free_port, name, shows_losses):
    """A format without a place for losses gets the events that there are; how many were lost is told beside it."""
    bench_file = tmp_path / "bench.toml"
    bench_file.write_text(
        f'[units.transmitter]\nname = "generic-tx"\nurl = "tcp://127.0.0.1:{free_port()}"\n'
        f'[units.receiver]\nname = "generic-rx"\nurl = "tcp://127.0.0.1:{free_port()}"\n'
    )
    with serve_bench(bench_file) as served, open_bench(bench_file) as bench:
        bench.units["transmitter"].arm()
        bench.units["transmitter"].start()
        served.lines["receiver"].unit.faults.add(Fault.OVERFLOW)
        recorded = record_events(bench, "receiver", tmp_path / name, duration_s=0.3)
    blocks = list(open_events(tmp_path / name).read_blocks())
    kinds = np.concatenate([block.kind for block in blocks])
    counts = json.loads(recorded.snapshot.read_text())["counts"]
    assert recorded.shows_losses == shows_losses
    assert np.count_nonzero(kinds == EventKind.PHOTON) == counts["photons"] > 1000
    assert recorded.missed == counts["missed"] > 100
    assert recorded.gaps == counts["gaps"] > 0
    assert np.count_nonzero(kinds == EventKind.GAP_BEGIN) == (recorded.gaps if shows_losses else 0)
    assert sum(block.missed for block in blocks) == (recorded.missed if shows_losses else 0)


def test_what_record_events_cannot_do_names_what_it_can(tmp_path, bench_file):
    with serve_bench(bench_file), open_bench(bench_file) as bench:
        with pytest.raises(ConfigurationError) as raised:
            record_events(bench, "receivr", tmp_path / "x.h5", duration_s=0.1)
        assert raised.value.remedy == "time taggers: receiver"
        for name, format_name in (("x.foo", None), ("x.h5", "foo")):
            with pytest.raises(ConfigurationError) as raised:
                record_events(bench, "receiver", tmp_path / name, duration_s=0.1, format_name=format_name)
            assert "hdf5" in raised.value.remedy
            assert "--" not in raised.value.remedy


def test_events_are_recorded_on_the_command_line(tmp_path):
    bench, file = tmp_path / "bench.toml", tmp_path / "run.h5"
    bench.write_text('[units.tagger]\nname = "generic-rx"\nurl = "emu://generic-rx"')
    command = [sys.executable, "-m", "qkdhw", "events", "record", str(bench), "tagger", str(file), "--duration", "0.3"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(done.stdout)
    assert told["events"] == sum(len(block) for block in open_events(file).read_blocks()) > 0
    assert told["span_s"] > 0
    assert json.loads((tmp_path / "run.h5.json").read_text())["unit"] == "tagger"
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (refused.returncode, "--force" in refused.stderr) == (1, True)
    forced = subprocess.run([*command, "--force"], capture_output=True, text=True, check=True, timeout=60)
    assert f" in {file}; the bench in {file}.json" in forced.stdout


def test_a_bench_whose_file_leaves_the_port_to_choose_is_opened_where_it_is(tmp_path):
    file = tmp_path / "bench.toml"
    file.write_text(
        '[units.attenuator]\nname = "agilent-8156a"\nurl = "tcp://127.0.0.1:0"\nsettings = { attenuation_db = 2.5 }'
    )
    with serve_bench(file) as served, served.open() as bench:
        assert served.lines["attenuator"].unit.receive(b":INP:ATT?\n") == b"2.500\n"
        assert bench.settings["attenuator"] == {"attenuation_db": 2.5}
        with pytest.raises(ConfigurationError, match=r"units\.attenuator\.url"):
            open_bench(file)


def test_a_change_of_the_world_that_is_none_is_told_what_there_is(tmp_path, bench_file):
    control = tmp_path / "control"
    with serve_bench(bench_file) as served, control_socket(control, served.lines):
        command = [sys.executable, "-m", "qkdhw", "devices", "world", str(control), "receiver.fibre_connected=off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "receiver.fibre_connected=1" in done.stderr
