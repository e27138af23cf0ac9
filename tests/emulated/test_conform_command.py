"""`qkdhw devices conform`, `emulate` and `world` as programs: exit codes, reports, and what wrong arguments say."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from qkdhw.cli import app, main
from qkdhw_emulators.conformance.report import html_report
from qkdhw_emulators.control import ask_control, control_socket
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.line import Line
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent8156A
from qkdhw_emulators.world import VirtualClock, World

HOSTILE = "<script>alert('1')</script>[/red][bold]&\x1b[31m"
BROKEN = '''
"""A driver that forgets to look at the range, does not fit its Protocol, and an emulator with an odd name."""

from qkdhw.drivers.setting import Setting
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw_emulators.units.table_unit import Entry, TableUnit


class Loose(Setting):
    def checked(self, value):
        return value


class Broken(TextInstrument):
    vendor, model, unit_kind = "Acme", "B1", "attenuator"
    capabilities = frozenset({"Attenuator"})
    done, refusal = "OK", "ERR"
    gain_db = Loose(float, unit="dB", minimum=0, maximum=10, step=1, query="GAIN?", command="GAIN {value}", doc="Gain.")


class EmulatedBroken(TableUnit):
    identity = "ACME,<b>[/B1],17,1.0"
    table = {"GAIN": Entry(0, 10)}
'''
ENTRY_POINTS = """
[qkdhw.drivers]
acme-broken = acme_broken:Broken
acme-absent = acme_broken:Absent
[qkdhw.emulators]
acme-broken = acme_broken:EmulatedBroken
"""


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    """A folder with an installed distribution that brings a driver which breaks rules."""
    site = tmp_path_factory.mktemp("site")
    (site / "acme_broken.py").write_text(BROKEN)
    info = site / "acme_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def qkdhw(*arguments, site=None, **options):
    environment = os.environ | ({"PYTHONPATH": str(site)} if site else {})
    command = [sys.executable, "-m", "qkdhw", "devices", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ended(*arguments, site=None):
    """Exit code, standard output and standard error of a whole run."""
    process = qkdhw(*arguments, site=site, stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=100)
    assert "Traceback" not in err
    return process.returncode, out, err


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the program inside this process; it must end with a typed error. Returns what it says."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["qkdhw", "devices", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", None)
        with pytest.raises(SystemExit, match="1"):
            main()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ConfigurationError: ")
        assert "remedy: " in err
        return " ".join(err.split())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


# --- conform -------------------------------------------------------------------------------------------------------
def test_a_driver_that_conforms_ends_with_0_and_a_report_in_both_forms(tmp_path):
    folder = tmp_path / "reports" / "today"
    code, out, _ = ended("conform", "idq-quantis", "--rounds", 3, "--report", folder, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["conforms"] is True
    assert (report["driver"], report["emulated"], report["counts"]["failed"]) == ("idq-quantis", True, 0)
    assert sum(report["counts"].values()) == len(report["checks"])
    assert sorted(file.name for file in folder.iterdir()) == [
        "conformance-idq-quantis.html",
        "conformance-idq-quantis.json",
    ]
    assert json.loads((folder / "conformance-idq-quantis.json").read_text()) == report
    page = Tags((folder / "conformance-idq-quantis.html").read_text())
    assert "Conforms: " in page.text
    assert page.tags.count("tr") == 1 + len(report["checks"])


def test_a_driver_that_breaks_rules_ends_with_1_and_says_which(acme, tmp_path):
    code, out, _ = ended("conform", "acme-broken", "--rounds", 3, "--timeout", 0.2, "--report", tmp_path, site=acme)
    assert code == 1
    assert "acme-broken does NOT conform: " in out
    assert "\nfailed " in out
    report = json.loads((tmp_path / "conformance-acme-broken.json").read_text())
    failed = {check["check"]: check["detail"] for check in report["checks"] if check["verdict"] == "failed"}
    assert report["conforms"] is False
    assert {"capabilities", "range errors"} <= set(failed)
    assert "Attenuator" in failed["capabilities"]
    assert all(failed.values())
    page = Tags((tmp_path / "conformance-acme-broken.html").read_text())
    assert "Does not conform: " in page.text
    assert failed["capabilities"] in page.text


def test_an_address_where_nobody_answers_does_not_conform():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    code, out, _ = ended("conform", "agilent-8156a", "--address", address, "--timeout", 0.1, "--rounds", 1, "--json")
    report = json.loads(out)
    assert (code, report["conforms"], report["emulated"], report["address"]) == (1, False, False, address)
    assert "TransportError" in {check["check"]: check["detail"] for check in report["checks"]}["identity"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing-such"], "no driver is called 'nothing-such'"),
        (["acme-absent"], "driver 'acme-absent' cannot be imported"),
        (["swabian-time-tagger"], "no emulator is called 'swabian-time-tagger'"),
        (["agilent-8156a", "--on", "usb"], "is no USB unit"),
    ],
)
def test_what_cannot_be_checked_is_a_typed_error(acme, refused, monkeypatch, arguments, said):
    monkeypatch.syspath_prepend(acme)
    assert said in refused("conform", *arguments)


def test_a_report_that_cannot_be_written_is_a_typed_error_before_anything_is_checked(tmp_path, refused):
    (tmp_path / "file").touch()
    assert "file" in refused("conform", "idq-quantis", "--rounds", 1, "--report", tmp_path / "file")


def test_a_page_shows_what_a_hostile_unit_says_as_text():
    check = {"check": HOSTILE, "rule": HOSTILE, "verdict": "failed", "detail": HOSTILE, "duration_s": 1.5}
    report = {
        "qkdhw": "1", "driver": HOSTILE, "address": HOSTILE, "emulated": False, "conforms": False,
        "counts": {"failed": 1}, "checks": [check], "unit": {"model": HOSTILE}, "transport": "tcp", "rounds": 1,
    }  # fmt: skip
    page = Tags(html_report(report))
    assert not {"script", "b"} & set(page.tags)
    assert page.text.count(HOSTILE) == 8  # title, heading, three in the row, model, driver, address


class EmulatedHostile(EmulatedAgilent8156A):
    """An attenuator whose serial number is markup."""

    identity = "HEWLETT-PACKARD,HP8156A,[/red]<script>[bold],1.02"


def test_a_terminal_shows_what_a_hostile_unit_says_as_text():
    with serve_unit(EmulatedHostile(), transport="tcp") as served:
        run = CliRunner().invoke(app, ["devices", "info", "agilent-8156a", served.url], catch_exceptions=False)
        assert "[/red]<script>[bold]" in run.stdout
        options = ["--address", served.url, "--rounds", "1", "--timeout", "0.5"]
        said = CliRunner().invoke(app, ["devices", "conform", "agilent-8156a", *options], catch_exceptions=False)
        assert "agilent-8156a conforms" in said.stdout
    run = CliRunner().invoke(app, ["devices", "conform", "agilent-8156a", "--address", "tcp://[/red]", "--rounds", "1"])
    assert run.exit_code == 1
    assert "does NOT conform" in run.stdout


# --- emulate -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a unit's name or --bench"),
        (["agilent-8156a", "--bench", "bench.toml"], "give a unit's name or --bench"),
        (["nothing-such"], "no emulator is called 'nothing-such'"),
        (["agilent-8156a", "--pace", "fast"], "--pace 'fast' is no number"),
        (["agilent-8156a", "--pace", "0"], "pace is 0"),
        (["agilent-8156a", "--pace", "nan"], "pace is nan"),
        (["agilent-8156a", "--pace", "inf"], "pace is inf"),
        (["agilent-8156a", "--fault", "nope"], "no fault is called 'nope'"),
        (["agilent-8156a", "--fault", "drop:rate=7"], "fault drop"),
        *((["idq-quantis", "--on", on], "its own process only") for on in ("emu", "usb", "usbtmc")),
        (["agilent-8156a", "--path", "/nonexistent/unit"], "/nonexistent/unit"),
        (["agilent-8156a", "--control", "/nonexistent/control"], "/nonexistent/control"),
        (["--bench", "/nonexistent/bench.toml"], "/nonexistent/bench.toml"),
        (["--bench", "bench.toml", "--fault", "drop"], "are for one unit"),
    ],
)
def test_what_cannot_be_emulated_is_a_typed_error(refused, arguments, said):
    assert said in refused("emulate", *arguments)


@pytest.mark.parametrize("on", ["tcp", "hislip", "vxi11", "rfc2217", "zmq"])
def test_a_taken_port_is_a_typed_error(refused, on):
    name = "idq-id900" if on == "zmq" else "agilent-8156a"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f":{port}: " in refused("emulate", name, "--on", on, "--port", port)


@pytest.mark.parametrize(
    ("name", "on", "port", "wrong"),
    [
        ("single-quantum-websq", "tcp", 65400, 65745),
        ("idq-id900", "zmq", 65100, 65605),
        ("idq-id900", "zmq", 1024, -289),
    ],
)
def test_a_port_with_no_room_for_the_units_other_ports_is_a_typed_error(refused, name, on, port, wrong):
    assert f"would need port {wrong} too" in refused("emulate", name, "--on", on, "--port", port)


@pytest.mark.parametrize("url", ["tcp://192.0.2.1:5025", "visa://TCPIP::192.0.2.1::inst0::INSTR", "replay://file"])
def test_a_bench_with_an_address_elsewhere_is_not_emulated(tmp_path, refused, url):
    file = tmp_path / "bench.toml"
    file.write_text(f'[units.attenuator]\nname = "agilent-8156a"\nurl = "{url}"\n')
    assert url in refused("emulate", "--bench", file)


@contextmanager
def emulated(*arguments):
    with qkdhw("emulate", *arguments, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "end of input"])
def test_it_serves_until_it_is_stopped(tmp_path, end):
    control = tmp_path / "control"
    with emulated("agilent-8156a", "--on", "tcp", "--control", control, "--fault", "drop:count=2", "--json") as process:
        (url,) = json.loads(process.stdout.readline()).values()
        port = int(url.rpartition(":")[2])
        assert ask_control(control, {"do": "list"})["units"]["agilent-8156a"]["faults"] == ["drop"]
        assert control.stat().st_mode & 0o077 == 0
        if end == "end of input":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, end))
        assert process.wait(timeout=100) == 0
        assert process.stderr.read() == ""
    assert not control.exists()
    with socket.create_server(("127.0.0.1", port)):
        pass


# --- world ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def control(tmp_path):
    """The control socket of a detector."""
    path, world = tmp_path / "control", World(clock=VirtualClock(pace=None))
    part = world.part("detector")
    with control_socket(path, {"detector": Line(make_unit("single-quantum-websq", part), part)}):
        yield path


def test_the_world_is_shown_and_changed(control):
    code, out, _ = ended(
        "world", control, "detector.temperature_k=4.5", "--fault", "detector:drop:count=1", "--advance", 2
    )
    assert code == 0
    assert "2.000 s on the bench's clock" in out
    assert "detector  faults: drop" in out
    assert "temperature_k = 4.5" in out
    code, out, _ = ended("world", control, "--clear", "detector", "--json")
    state = json.loads(out)
    assert (code, state["now_s"], state["units"]["detector"]["faults"]) == (0, 2.0, [])
    assert state["units"]["detector"]["conditions"]["temperature_k"] == 4.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["detector.temperature_k"], "is not UNIT.CONDITION=NUMBER"),
        (["temperature_k=4"], "is not UNIT.CONDITION=NUMBER"),
        (["detector.temperature_k=warm"], "is not UNIT.CONDITION=NUMBER"),
        (["detector.temperature_k=nan"], "temperature_k cannot be nan"),
        (["detector.temperature_k=inf"], "temperature_k cannot be inf"),
        (["detector.humidity=4"], "does not sense 'humidity'"),
        (["toaster.temperature_k=4"], "there is no unit 'toaster'"),
        (["--fault", "detector"], "no fault is called ''"),
        (["--fault", "detector:nope"], "no fault is called 'nope'"),
        (["--fault", "toaster:drop"], "there is no unit 'toaster'"),
        (["--clear", "toaster"], "there is no unit 'toaster'"),
        (["--advance", "inf"], "time does not go on by inf s"),
    ],
)
def test_a_wrong_change_is_a_typed_error_and_changes_nothing(control, refused, arguments, said):
    before = ask_control(control, {"do": "list"})
    assert said in refused("world", control, *arguments)
    assert ask_control(control, {"do": "list"}) == before


@pytest.mark.parametrize("answer", [b"", b"no JSON\n", b"[1]\n", b"{}\n"])
def test_a_socket_that_is_no_bench_is_a_typed_error(tmp_path, refused, answer):
    path = tmp_path / "control"

    def reply():
        client, _ = server.accept()
        with client:
            client.recv(100)
            client.sendall(answer)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=reply)
        thread.start()
        assert "emulated bench" in refused("world", path)
        thread.join()


def test_no_bench_at_all_is_a_typed_error(tmp_path, refused):
    assert "no emulated bench answers" in refused("world", tmp_path / "none")


def test_the_lines_of_a_check_can_be_kept_by_a_pipe():
    command = [sys.executable, "-m", "qkdhw", "devices", "conform", "agilent-8156a", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("agilent-8156a conforms")
    assert len([line for line in lines if line.startswith("passed")]) > 5
    assert all(line.startswith(("passed", "not applicable", "agilent-8156a")) for line in lines)  # none is broken


# --- python -m qkdhw_emulators ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, ""),
        (["link", "--loss-db", "much"], 2, "--loss-db"),
        (["nothing-such"], 2, "nothing-such"),
        (["link", "--loss-db", "-5"], 1, "error: link parameter loss_db is -5.0"),
    ],
)
def test_the_emulators_alone_end_with_a_code_and_without_a_traceback(arguments, code, said):
    command = [sys.executable, "-m", "qkdhw_emulators", *arguments]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
