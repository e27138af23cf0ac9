"""Two sites on an emulated link with monitors: honest blocks give key; a block in alarm and those after it give none."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from qkdhw.cli import app
from qkdhw.errors import ConfigurationError, QkdhwError
from qkdhw.events.monitors import Calibration, read_tolerances
from qkdhw.link import AlarmFile, calibrate_site, load_site, run_site
from qkdhw_emulators.optics.attacks.blinding import BlindingCw
from qkdhw_emulators.optics.attacks.detector_faults import DetectorDying
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.serve import serve_link
from two_sites import make_store

BLOCK_PULSES = 24_000_000
SYNC = 1 << 18

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Attacked(LinkParameters):
    """A link on which something goes on from the begin to the end."""

    attack: object = None

    def schedule(self):
        return Schedule((self.attack,) if self.attack else ())


def site_text(role, folder, url, channel, blocks, monitors):
    lines = [
        f'role = "{role}"', "[unit]", f'name = "{"generic-tx" if role == "transmitter" else "sfifteen-tdc1"}"',
        f'url = "{url}"',
    ]  # fmt: skip
    if role == "transmitter":
        lines += [
            "[unit.settings]", "pulse_rate_hz = 20000000", "mean_photon_number = [0.58, 0.17, 0.001]",
            "intensity_probability = [0.65, 0.29, 0.06]", "key_basis_probability = 0.81",
        ]  # fmt: skip
    lines += [
        "[channel]", channel, "timeout_s = 20.0", "patience_s = 5.0", "[protocol]", 'link = "north"',
        "pulse_rate_hz = 20000000", f"sync_pulses = {SYNC}", f"block_pulses = {BLOCK_PULSES}", f"blocks = {blocks}",
        'proof = "rigorous"', "authentication_bytes = 512", "[keys]", f'store = "{role}.sqlite"', 'kek_file = "kek"',
    ]  # fmt: skip
    if role == "receiver":
        wiring = ", ".join(
            f'{{channel = {n}, basis = "{basis}", bit = {bit}}}'
            for n, basis, bit in ((1, "key", 0), (2, "key", 1), (3, "test", 0), (4, "test", 1))
        )
        lines += ["[receiver]", f"wiring = [{wiring}]", "window_ps = 10000", "dead_time_ps = 50000"]
        lines += ["[receiver.monitors]", 'calibration = "monitors.json"'] if monitors else []
    path = folder / f"{role}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


class Link:
    """Both sites' stores and files in one folder; runs of them on emulated units."""

    def __init__(self, folder):
        self.folder = folder
        for role in ("transmitter", "receiver"):
            make_store(folder, role, masks=2000).close()

    def run(self, blocks, *, attack=None, seed=1, monitors=True, receiver=run_site):
        """Run both sites; return the events of each, and what the receiver's side returned."""
        events = {"transmitter": [], "receiver": []}
        ports, port, stop = [], threading.Event(), threading.Event()

        def listening(event):
            events["transmitter"].append(event)
            if event["event"] == "listening":
                ports.append(event["port"])
                port.set()

        with serve_link(Attacked(attack=attack), seed=seed) as units, ThreadPoolExecutor(1) as pool:
            listen = site_text(
                "transmitter", self.folder, units.transmitter_url, 'listen = "127.0.0.1:0"', blocks, False
            )
            sender = pool.submit(self._transmit, listen, listening, stop)
            assert port.wait(20)
            connect = f'connect = "127.0.0.1:{ports[0]}"'
            path = site_text("receiver", self.folder, units.receiver_url, connect, blocks, monitors)
            try:
                returned = receiver(load_site(path), events["receiver"].append)
            finally:
                stop.set()
                sender.result(30)
        return events, returned

    @staticmethod
    def _transmit(path, emit, stop):
        with suppress(QkdhwError):  # its peer may leave before its blocks are done
            run_site(load_site(path), emit, stop=stop)


def blocks_of(events, role="receiver"):
    return [event for event in events[role] if event["event"] == "block"]


def checks_of(events, role="receiver"):
    return [event["statistics"]["failed_check"] for event in blocks_of(events, role)]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")

    def calibrated(config, emit):
        return calibrate_site(
            config,
            emit,
            folder / "monitors.json",
            n_blocks=12,
            false_alarm_rate=1e-9,
            note="an emulated link",
            tolerances=read_tolerances(["profile=0.3"]),
        )

    events, found = Link(folder).run(0, monitors=False, receiver=calibrated)
    assert set(checks_of(events)) == {""}
    assert all("monitors" not in block for block in blocks_of(events))
    assert found.n_blocks == 12
    assert {"count_rate", "balance_key", "doubles", "gain_0", "errors", "outside_window"} <= set(found.limits)
    return (folder / "monitors.json").read_text()


@pytest.fixture
def link(tmp_path, calibration):
    (tmp_path / "monitors.json").write_text(calibration)
    return Link(tmp_path)


def test_the_record_is_what_was_found(calibration):
    assert Calibration.from_json(calibration).note == "an emulated link"


def test_honest_blocks_give_key_and_every_reading_is_told(link):
    events, _ = link.run(4, seed=2)
    assert checks_of(events) == [""] * 4
    assert all(block["statistics"]["n_keys"] > 0 for block in blocks_of(events))
    for block in blocks_of(events):
        assert block["monitors"]["alarms"] == {}
        states = {name: reading["state"] for name, reading in block["monitors"]["readings"].items()}
        assert "alarm" not in states.values()
        assert {name for name, state in states.items() if state == "fine"} >= {"count_rate", "balance_key", "errors"}
        json.dumps(block, allow_nan=False)
    assert not [event for event in events["receiver"] if event["event"] == "alarm"]


@pytest.mark.parametrize(
    ("attack", "shown_by"),
    [(DetectorDying(efficiency_factor=0.6), "balance_key"), (BlindingCw(), "doubles")],
    ids=["a detector that dies", "blinding"],
)
def test_a_block_in_alarm_gives_no_key_nor_any_after_it(link, attack, shown_by):
    """The attack ends, the site is started again: the alarm stands until it is cleared with a reason."""
    events, _ = link.run(2, attack=attack, seed=3)
    for role in ("receiver", "transmitter"):
        assert checks_of(events, role) == ["monitors"] * 2
        assert all(block["statistics"]["n_keys"] == 0 for block in blocks_of(events, role))
    assert shown_by in blocks_of(events)[0]["monitors"]["alarms"]
    raised = [event["monitor"] for event in events["receiver"] if event["event"] == "alarm"]
    assert shown_by in raised
    assert len(raised) == len(set(raised))
    counts = [event["counts"] for event in events["receiver"] if event["event"] == "end"]
    assert not any(counts[-1].values())

    events, _ = link.run(1, seed=4)  # honest again
    assert checks_of(events) == ["monitors"]
    assert shown_by in [event["monitor"] for event in events["receiver"] if event["event"] == "alarm"]
    file = AlarmFile(link.folder / "monitor-alarms.json")
    for name in list(file.standing()):
        assert cleared_by_command(link.folder, name)["cleared"][-1]["reason"] == "it was a test"
    assert file.standing() == {}

    events, _ = link.run(1, seed=5)
    assert checks_of(events) == [""]
    assert blocks_of(events)[0]["statistics"]["n_keys"] > 0


def cleared_by_command(folder, name):
    arguments = ["link", "alarms", str(folder / "receiver.toml"), "--clear", name]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ConfigurationError | SystemExit)
    done = CliRunner().invoke(app, [*arguments, "--reason", "it was a test", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_canary_without_monitors_the_same_attack_gives_key(link):
    """A dying detector goes through every other check: only the monitors see it."""
    events, _ = link.run(1, attack=DetectorDying(efficiency_factor=0.6), seed=3, monitors=False)
    assert checks_of(events) == [""]
    assert blocks_of(events)[0]["statistics"]["n_keys"] > 0


def test_what_cannot_be_read_makes_no_key(link):
    """No calibration, one that is none, and alarms that nobody can read: each is named before anything is made."""
    for name, text, said in (
        ("monitors.json", None, "cannot be read"),
        ("monitors.json", "{}", "calibration of monitors"),
        ("monitor-alarms.json", "{", "alarms in"),
    ):
        kept = (link.folder / "monitors.json").read_text()
        path = link.folder / name
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        with pytest.raises(ConfigurationError, match=said) as raised:
            link.run(1)
        assert raised.value.remedy
        (link.folder / "monitors.json").write_text(kept)


def test_a_calibration_is_refused_when_something_is_wrong(link):
    path = site_text("receiver", link.folder, "none", 'connect = "127.0.0.1:1"', 1, False)
    options = {"n_blocks": 3, "false_alarm_rate": 1e-9, "note": "x"}
    with pytest.raises(ConfigurationError, match="there already"):
        calibrate_site(load_site(path), print, link.folder / "monitors.json", **options)
    with pytest.raises(ConfigurationError, match="at least two blocks"):
        calibrate_site(load_site(path), print, link.folder / "new.json", **options | {"n_blocks": 1})
    other = site_text("transmitter", link.folder, "none", 'connect = "127.0.0.1:1"', 1, False)
    with pytest.raises(ConfigurationError, match="receiver's site"):
        calibrate_site(load_site(other), print, link.folder / "new.json", **options)

    def too_long(config, emit):
        return calibrate_site(config, emit, link.folder / "new.json", **options)

    with pytest.raises(ConfigurationError, match="1 of 3 blocks came"):
        link.run(1, monitors=False, receiver=too_long)
    assert not (link.folder / "new.json").exists()
