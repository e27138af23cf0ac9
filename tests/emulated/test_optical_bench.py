"""A bench whose units are coupled by light: what is set at one, by its driver, is what another one counts."""

import importlib.util
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qkdhw.bench import read_bench_file
from qkdhw.errors import ConfigurationError
from qkdhw.model import EventKind
from qkdhw_emulators.bench import serve_bench
from qkdhw_emulators.optics.bench_clicks import ClickHistory, PulseTrain
from qkdhw_emulators.world import VirtualClock, World

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "optical-bench"
WITH_CONTROLLER = 'path = ["laser", "attenuator", "plate", "controller", "detectors"]'
WITHOUT_CONTROLLER = 'path = ["laser", "attenuator", "plate", "detectors"]'
DEAD_TIME_S = 30e-9
CHI_SQUARE_4 = 33.4  # 1 in a million is above it with four degrees of freedom


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("align", EXAMPLE / "align.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["align"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["align"]


@pytest.fixture
def align(script):
    return script.align


def run_script(*arguments):
    command = [sys.executable, str(EXAMPLE / "align.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def example_file(folder, *changes):
    """The example's bench file, with addresses that are free."""
    text = (EXAMPLE / "bench.toml").read_text()
    for old, new in [
        ("/tmp/optical-bench", f"{folder}/bench"), ("hislip0,4880", "hislip0,0"), (":5025", ":0"), (":12000", ":0"),
        *changes,
    ]:  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    file = folder / "bench.toml"
    file.write_text(text)
    return file


@contextmanager
def lit_bench(file, *, seed=5, pace=None):
    """Serve and open a bench and switch on what is needed; the laser has the temperature that it is to have."""
    with serve_bench(file, World(seed=seed, clock=VirtualClock(pace=pace))) as served, served.open() as bench:
        units = bench.units
        units["detectors"].enable_detectors()
        units["attenuator"].configure({"shutter_open": True})
        units["laser"].enable_output()
        if "plate" in units:
            units["plate"].home()
        advance(served, 30.0)
        yield served, bench


@pytest.fixture
def lit(tmp_path):
    with lit_bench(example_file(tmp_path)) as both:
        yield both


def advance(served, seconds):
    with served.world:
        served.world.clock.advance(seconds)


def counts_of(bench, gates=10):
    return np.sum([bench.units["tagger"].read_counts() for _ in range(gates)], axis=0)


def live_counts(counts, seconds):
    """What would be counted without dead time."""
    return counts / (1 - counts / seconds * DEAD_TIME_S)


def wrong_share(counts):
    return counts[1] / (counts[0] + counts[1])


@pytest.mark.parametrize(("change_db", "factor"), [(3.0, 10**-0.3), (0.0, 1.0), (6.0, 10**-0.6)])
def test_attenuation_changes_the_counts_by_as_much(lit, change_db, factor):
    _, bench = lit
    before = live_counts(counts_of(bench), 1.0)
    bench.units["attenuator"].set_attenuation_db(50.0 + change_db)
    after = live_counts(counts_of(bench), 1.0)
    squares = (after - factor * before) ** 2 / (after + factor**2 * before)
    assert before.min() > 1000
    assert squares.sum() < CHI_SQUARE_4
    wrong = (after - factor * 10**0.02 * before) ** 2 / (after + factor**2 * before)
    assert wrong.sum() > CHI_SQUARE_4  # 0.2 dB would have been seen


def test_a_module_of_a_mainframe_attenuates_as_well(tmp_path):
    file = example_file(
        tmp_path,
        ('name = "agilent-8156a"', 'name = "agilent-816x"\noptions = { slot = 1 }'),
        ("settings = { wavelength_nm = 1550, attenuation_db = 50 }", ""),
    )
    with lit_bench(file) as (_, bench):
        attenuator = bench.units["attenuator"]
        attenuator.set_attenuation_db(50.0)
        before = live_counts(counts_of(bench), 1.0)
        attenuator.set_attenuation_db(53.0)
        after = live_counts(counts_of(bench), 1.0)
    factor = 10**-0.3
    assert ((after - factor * before) ** 2 / (after + factor**2 * before)).sum() < CHI_SQUARE_4


def test_a_half_wave_plate_turns_by_twice_its_angle(tmp_path):
    file = example_file(tmp_path, (WITH_CONTROLLER, WITHOUT_CONTROLLER))
    with lit_bench(file) as (_, bench):
        shares = {}
        for angle_deg in (10.0, 32.5, 55.0, 100.0):
            bench.units["plate"].move_to(angle_deg)
            shares[angle_deg] = wrong_share(live_counts(counts_of(bench), 1.0))
    assert shares[100.0] == pytest.approx(shares[10.0], abs=0.01)  # half a turn of the light is none
    assert shares[55.0] == pytest.approx(1 - shares[10.0], abs=0.03)  # a quarter turn; the detectors are not equal
    assert abs(shares[32.5] - shares[10.0]) > 0.02


@pytest.mark.parametrize("paddle", [1, 2, 3])
def test_a_paddle_moves_light_from_one_detector_to_the_other_and_loses_none(lit, paddle):
    _, bench = lit
    shares, totals = [], []
    for angle_deg in (10.0, 60.0, 110.0):
        bench.units["controller"].set_retarder(paddle, angle_deg)
        counts = live_counts(counts_of(bench, 3), 0.3)
        shares.append(wrong_share(counts))
        totals.append(counts.sum())
    assert max(shares) - min(shares) > 0.05
    assert max(totals) - min(totals) < 0.03 * min(totals)  # detectors differ a little in efficiency


def test_more_bias_is_more_efficiency_and_more_dark_counts(lit):
    _, bench = lit
    detectors, laser = bench.units["detectors"], bench.units["laser"]
    bright, dark = [], []
    for bias_ua in (16.0, 19.0, 22.0):
        detectors.configure({"bias_current_ua": bias_ua})
        bright.append(counts_of(bench, 2).sum())
        laser.disable_output()
        dark.append(counts_of(bench, 40).sum())
        laser.enable_output()
    assert bright[1] > 3 * bright[0]
    assert bright[2] > 1.08 * bright[1]
    assert dark[2] > 20 * max(1, dark[1]) > dark[0]


def darken_by_laser(served, units):
    units["laser"].disable_output()


def darken_by_current(served, units):
    units["laser"].configure({"laser_current_a": 0.03})  # below its threshold


def darken_by_interlock(served, units):
    served.lines["laser"].world.set_condition("interlock_closed", 0)


def darken_by_shutter(served, units):
    units["attenuator"].configure({"shutter_open": False})


def darken_by_fibre(served, units):
    served.lines["detectors"].world.set_condition("fibre_connected", 0)


@pytest.mark.parametrize(
    "darken", [darken_by_laser, darken_by_current, darken_by_interlock, darken_by_shutter, darken_by_fibre]
)
def test_without_light_there_are_dark_counts_only(lit, darken):
    served, bench = lit
    bench.units["detectors"].configure({"bias_current_ua": 22.0})
    assert counts_of(bench, 1).sum() > 50_000
    darken(served, bench.units)
    gates = 100
    counts = counts_of(bench, gates)
    with served.world:
        expected = served.lines["detectors"].unit.rates_hz(np.zeros(4)) * gates * 0.1
    assert 50 < expected.sum() < 20_000
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_4


def stream_of(bench, seconds, **options):
    """All photons that the tagger hands over in so much time of its own: times in seconds, and inputs."""
    tagger = bench.units["tagger"]
    tagger.start(**options)
    times, channels = [np.zeros(0)], []
    while not len(times[-1]) or times[-1][-1] < seconds:
        block = tagger.read_block(1 << 18, timeout_s=5.0)
        photon = block.kind == EventKind.PHOTON
        times.append(block.time_ticks[photon] * float(block.tick_ps) * 1e-12)
        channels.append(block.channel[photon])
    tagger.stop()
    times_s, channel = np.concatenate(times), np.concatenate(channels)
    return times_s[times_s < seconds], channel[times_s < seconds]


def test_the_detectors_electronics_counters_and_stream_of_the_tagger_agree(tmp_path):
    with lit_bench(example_file(tmp_path), pace=20.0) as (served, bench):
        bench.units["attenuator"].set_attenuation_db(58.0)
        electronics = np.sum([bench.units["detectors"].read_counts() for _ in range(5)], axis=0)
        counters = counts_of(bench, 5)
        begun_s = served.world.now_s()
        times_s, channels = stream_of(bench, 0.5)
        assert served.world.now_s() - begun_s >= 0.5  # nothing came before its time
    stream = np.bincount(channels, minlength=5)[1:]
    for one, other in [(electronics, counters), (electronics, stream), (counters, stream)]:
        assert ((one - other) ** 2 / (one + other)).sum() < CHI_SQUARE_4
    assert stream.min() > 1000
    for channel in (1, 2, 3, 4):
        gaps_s = np.diff(times_s[channels == channel])
        assert 28e-9 <= gaps_s.min() < 200e-9  # the detector's dead time, in ticks of 2 ns


@pytest.mark.parametrize(
    ("name", "url", "options"),
    [("idq-id900", "zmq://127.0.0.1:0", {"sub_acquisition_s": 0.1}), ("cqt-fx2", "usb://04b4:1234", {})],
)
def test_other_taggers_see_the_same_light(tmp_path, name, url, options):
    file = example_file(
        tmp_path,
        (f'name = "sfifteen-tdc1"\nurl = "serial://{tmp_path}/bench-tagger"', f'name = "{name}"\nurl = "{url}"'),
        ("settings = { gate_time_ms = 100 }", ""),
    )
    with lit_bench(file, pace=10.0) as (served, bench):
        bench.units["attenuator"].set_attenuation_db(58.0)
        electronics = np.sum([bench.units["detectors"].read_counts() for _ in range(5)], axis=0)
        begun_s = served.world.now_s()
        times_s, channels = stream_of(bench, 0.5, **options)
        assert served.world.now_s() - begun_s >= 0.5
        bench.units["attenuator"].configure({"shutter_open": False})
        _, dark = stream_of(bench, 0.5, **options) if name == "cqt-fx2" else (None, [])
        assert {"rate_1_hz", "signal_rate_hz"}.isdisjoint(served.lines["tagger"].world.conditions)
    stream = np.bincount(channels, minlength=5)[1:]
    assert stream.min() > 1000
    assert ((stream - electronics) ** 2 / (stream + electronics)).sum() < CHI_SQUARE_4
    assert min(np.diff(times_s[channels == channel]).min() for channel in (1, 2, 3, 4)) >= 29.8e-9
    assert len(dark) < 100


def test_events_come_when_their_time_has_come_and_a_change_shows_from_then_on(lit):
    served, bench = lit
    tagger, attenuator = bench.units["tagger"], bench.units["attenuator"]
    tagger.start()
    assert len(tagger.read_block(1000, timeout_s=0.3)) == 0
    assert len(tagger.read_block(1000, timeout_s=0.3)) == 0  # time stands still
    times = []
    for change in ({"shutter_open": False}, {"shutter_open": True}, {}):
        advance(served, 0.05)
        attenuator.configure(change)
        while len(block := tagger.read_block(1 << 18, timeout_s=0.3)):
            times.append(block.time_ticks[block.kind == EventKind.PHOTON] * 2e-9)
    tagger.stop()
    light = np.histogram(np.concatenate(times), bins=[0, 0.05, 0.1, 0.15, 10.0])[0]
    assert light[3] == 0
    assert light[1] < 20
    assert min(light[0], light[2]) > 20_000


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_alignment_script_converges_from_anywhere(tmp_path, align, seed):
    with lit_bench(example_file(tmp_path), seed=seed) as (_, bench):
        for paddle, angle_deg in zip((1, 2, 3), np.random.default_rng(seed).uniform(0, 170, 3), strict=True):
            bench.units["controller"].set_retarder(paddle, angle_deg)
        aligned = align(bench, limit=0.01, most_steps=10, seed=seed)
        assert max(aligned.qber_key, aligned.qber_test) < 0.01
        bench.units["plate"].move_to(0.0)
        key_1, key_0 = (int(bench.units["detectors"].read_counts()[n]) for n in (1, 0))  # by another unit
        assert key_1 / (key_0 + key_1) < 0.01


def test_with_a_controller_that_light_does_not_pass_it_does_not(tmp_path, align):
    with lit_bench(example_file(tmp_path, (WITH_CONTROLLER, WITHOUT_CONTROLLER)), seed=1) as (_, bench):
        aligned = align(bench, limit=0.01, most_steps=10, seed=1)
    assert aligned.steps == 10
    assert max(aligned.qber_key, aligned.qber_test) > 0.05


def test_somebody_bends_the_fibre_and_it_is_aligned_again_on_an_accelerated_clock(tmp_path, align):
    with lit_bench(example_file(tmp_path), seed=4, pace=50.0) as (served, bench):
        assert align(bench, seed=1).qber_key < 0.01
        bench.units["plate"].move_to(0.0)
        aligned = wrong_share(counts_of(bench, 2))
        served.lines["detectors"].world.set_condition("fibre_twist_rad", 1.0)
        bent = wrong_share(counts_of(bench, 2))
        assert bent > aligned + 0.03
        again = align(bench, seed=2)
        assert max(again.qber_key, again.qber_test) < 0.01


def test_the_script_and_the_served_bench_are_two_processes(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        hislip, scpi = one.getsockname()[1], other.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as third:
        websq = third.getsockname()[1] - 345 if third.getsockname()[1] > 60_000 else third.getsockname()[1]
    file = example_file(tmp_path)
    text = file.read_text().replace("hislip0,0", f"hislip0,{hislip}")
    text = text.replace("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{scpi}", 1)
    file.write_text(text.replace("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{websq}", 1))
    command = [sys.executable, "-m", "qkdhw", "devices", "emulate", "--bench", str(file), "--pace", "none", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout.readline().startswith("{")
            done, missed = (run_script(str(file), *options) for options in ([], ["--limit", "0"]))
        finally:
            served.terminate()
    assert done.returncode == 0, done.stderr
    rates = [float(text) for text in re.findall(r"([0-9.]+)% in the", done.stdout)]
    assert len(rates) == 2
    assert max(rates) < 1.0
    assert missed.returncode == 1
    assert missed.stdout.startswith("16 settings; ")
    assert missed.stderr.startswith("not aligned: after 16 settings an error rate is not below 0.00%")


def test_the_script_says_which_bench_file_is_not_there(tmp_path):
    done = run_script(str(tmp_path / "none.toml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(tmp_path / "none.toml") in done.stderr
    assert "Traceback" not in done.stderr


def test_the_script_switches_the_light_off_when_it_fails(tmp_path, script):
    file = example_file(tmp_path, (WITH_CONTROLLER, WITHOUT_CONTROLLER))
    with serve_bench(file, World(seed=1, clock=VirtualClock(pace=None))) as served, served.open() as bench:
        del bench.units["plate"]
        with pytest.raises(KeyError, match="plate"):
            script.align_with_light(bench, 0.01)
        assert not bench.units["laser"].read_output_enabled()


def test_a_motor_attenuator_and_squeezers_are_coupled_too(tmp_path):
    file = example_file(
        tmp_path,
        ('name = "agilent-8156a"\nurl = "tcp://127.0.0.1:0"', f'name = "oz-dd100"\nurl = "serial://{tmp_path}/oz-a"'),
        ("settings = { wavelength_nm = 1550, attenuation_db = 50 }", ""),
        ('name = "thorlabs-mpc320"', 'name = "oz-epc400"'),
        ("settings = { velocity_percent = 100 }", 'settings = { operating_mode = "dc" }'),
    )
    with (
        serve_bench(file, World(seed=2, clock=VirtualClock(pace=None))) as served,
        served.open() as bench,
    ):
        units = bench.units
        units["detectors"].enable_detectors()
        units["attenuator"].set_attenuation_db(50.0)
        units["laser"].enable_output()
        advance(served, 30.0)
        before = live_counts(counts_of(bench, 3), 0.3)
        half_db = units["attenuator"].set_attenuation_db(53.0) - 50.0
        after = live_counts(counts_of(bench, 3), 0.3)
        assert after.sum() == pytest.approx(before.sum() * 10 ** (-half_db / 10), rel=0.02)
        shares = []
        for voltage_mv in (0, 800, 1600):
            units["controller"].set_retarder(2, voltage_mv)
            shares.append(wrong_share(counts_of(bench, 2)))
        assert max(shares) - min(shares) > 0.05


def test_conditions_that_light_replaces_are_not_there(lit):
    served, _ = lit
    conditions = served.lines["detectors"].world.conditions
    assert {"fibre_connected", "fibre_twist_rad", "temperature_k"} <= set(conditions)
    with pytest.raises(ConfigurationError, match="light_rate_hz"):
        conditions["light_rate_hz"] = 1.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (WITH_CONTROLLER, "path = []", r"optics\.path: "),
        (WITH_CONTROLLER, 'path = ["laser", "nobody"]', r"optics\.path\.1: there is no unit 'nobody'"),
        (WITH_CONTROLLER, 'path = ["laser", "laser"]', r"optics\.path\.1: laser is on the path twice"),
        ("fixed_loss_db = 57", "fixed_loss_db = -1", r"optics\.fixed_loss_db"),
        ("fixed_loss_db = 57", "loss = 1", r"optics\.loss: .*fields: path, fixed_loss_db, wavelength_nm"),
    ],
)
def test_a_wrong_path_in_the_file_is_refused_by_its_name(tmp_path, old, new, said):
    with pytest.raises(ConfigurationError, match=said):
        read_bench_file(example_file(tmp_path, (old, new)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (WITH_CONTROLLER, 'path = ["attenuator", "detectors"]', r"optics\.path\.0: .* is not a light source"),
        (WITH_CONTROLLER, 'path = ["laser", "attenuator"]', r"optics\.path\.1: .* is not photon detectors"),
        (WITH_CONTROLLER, 'path = ["laser"]', r"optics\.path\.0"),
        (WITH_CONTROLLER, 'path = ["laser", "tagger", "detectors"]', r"optics\.path\.1: .* light passes"),
        ('unit = "tagger"\nchannel = 4\ndetector = "T1"', 'unit = "tagger"\nchannel = 4\ndetector = "T9"', "'T9'"),
        ('unit = "tagger"\nchannel = 4', 'unit = "attenuator"\nchannel = 4', "takes no pulses"),
        ('unit = "detectors"\nchannel = 4', 'unit = "detectors"\nchannel = 5', "has 4 detectors"),
    ],
)
def test_a_path_that_light_cannot_take_is_refused(tmp_path, old, new, said):
    with pytest.raises(ConfigurationError, match=said), serve_bench(example_file(tmp_path, (old, new))):
        pass


def test_pulses_follow_the_rates_and_the_dead_time():
    history = ClickHistory(1, 1e-6)
    for end_s, rate_hz in [(1.0, 2e5), (2.0, 0.0), (3.0, 5e4)]:
        history.extend(end_s, np.array([rate_hz]))
    train = PulseTrain(history, 0, 0.0, np.random.default_rng(1))
    times_s = np.concatenate([train.until(end_s) for end_s in (0.3, 0.3, 1.7, 3.0)])
    counts = np.histogram(times_s, bins=[0, 1, 2, 3])[0]
    assert abs(counts[0] - 2e5) < 5 * 2e5**0.5
    assert counts[1] == 0
    assert abs(counts[2] - 5e4) < 5 * 5e4**0.5
    assert np.diff(times_s).min() >= 1e-6 - 1e-12
    assert history.mean_counts(0.5, 2.5)[0] == pytest.approx(1e5 + 2.5e4)
    assert history.mean_counts(2.5, 3.5)[0] == pytest.approx(5e4)  # it goes on
