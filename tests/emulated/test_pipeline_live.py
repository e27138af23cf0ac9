"""Pipelines on open units and endless streams, with monitors; the examples of the page."""

import itertools
import re
import threading
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from pipeline_truth import SimulatedEnds
from test_pipeline import PASSIVE, SYNC, check_balance, drop_all, sift_ends
from typer.testing import CliRunner

from qkdhw.bench.pipeline import EventPipeline, Observer, sift_files
from qkdhw.cli import app
from qkdhw.drivers import open_unit
from qkdhw.errors import EventError, PeerProtocolError, TransportClosedError, TransportTimeoutError
from qkdhw.events.clock import SlotClock
from qkdhw.events.monitors import MonitorBank, calibrate
from qkdhw.events.wiring import FOUR_DETECTORS
from qkdhw.model import DetectionBlock, PreparationBlock
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.serve import serve_link, serve_unit
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import VirtualClock, World


def observed(setup, seed, judge):
    """Run a link of 20 ms with a stretch of a million slots after the other."""
    sift_ends(SimulatedEnds(setup, 20_000_000, seed=seed), observer=Observer(judge, 1_000_000), piece_events=1000)


def test_monitors_see_a_detector_that_lost_half_its_efficiency_and_nothing_in_an_honest_link():
    setup = load_setup(PASSIVE)
    trusted, honest = [], []
    observed(setup, 1, trusted.append)
    assert len(trusted) > 10
    assert sum(o.n_slots for o in trusted) > 18_000_000
    bank = MonitorBank(calibrate(trusted, false_alarm_rate=1e-9, note="a simulated link"))
    observed(setup, 2, lambda o: honest.append(bank.judge(o)))
    assert not bank.alarms
    assert {"count_rate", "balance_key", "gain_0", "gain_1", "profile"} <= set(honest[-1])
    values = setup.model_dump()
    values["receiver"]["detectors"][0]["efficiency"] *= 0.4
    observed(type(setup).model_validate(values), 3, bank.judge)
    assert "balance_key" in bank.alarms


@pytest.mark.parametrize("faults", [(), (Fault.OVERFLOW,)])
def test_live_units_from_both_ends(faults):
    """An emulated transmitter and tagger over real transports; a buffer that ran over is counted, what came is sifted."""
    with ExitStack() as stack:
        served = stack.enter_context(serve_link(LinkParameters(), seed=11, receiver_faults=faults))
        sending = stack.enter_context(open_unit("generic-tx", served.transmitter_url))
        tagger = stack.enter_context(open_unit("sfifteen-tdc1", served.receiver_url))
        sending.configure({"pulse_rate_hz": 20_000_000})
        sending.arm()
        sending.start()
        report = sift_files(
            tagger, sending, period_ps=50_000, window_ps=40_000, sync_pulses=SYNC, duration_s=1.0, timeout_s=20.0
        )
    check_balance(report.receiver, report.sender)
    assert report.receiver.n_key > 10_000
    assert report.qber() < 0.05
    assert report.receiver.n_overflows == len(faults)


def test_a_unit_whose_events_nobody_takes_is_not_read():
    """A tagger at a million events a second over its own ring and the pipeline's queue: both fill, nothing is lost."""
    world = World(seed=3, clock=VirtualClock())
    unit = EmulatedSFifteenTdc1(world)
    world.set_condition("signal_rate_hz", 1e6)
    with (
        serve_unit(unit, world, transport="emu") as served,
        open_unit("sfifteen-tdc1", served.url) as tagger,
        EventPipeline(
            tagger, FOUR_DETECTORS, period_ps=1_000_000, window_ps=900_000, clock=SlotClock.nominal(Fraction(500)),
            piece_events=1000, duration_s=3.0,
        ) as pipeline,
    ):  # fmt: skip
        while pipeline.statistics.n_stalls == 0:
            threading.Event().wait(0.01)
        drop_all(pipeline)
        statistics = pipeline.statistics
    check_balance(statistics)
    assert (statistics.n_overflows, statistics.n_missed) == (0, 0)
    assert statistics.n_unit_stalls > 0
    assert statistics.n_events == pytest.approx(3e6, rel=0.01)


def test_a_stream_that_is_told_to_stop_ends_and_keeps_what_came():
    endless = (clicks(1000 * number, 1000) for number in itertools.count())
    with opened(endless, piece_events=1000) as pipeline:
        for number, message in enumerate(pipeline):
            assert message
            with pytest.raises(PeerProtocolError):
                pipeline.sift(b"")
            if number == 3:
                pipeline.stop()
    check_balance(pipeline.statistics)
    assert 4000 <= pipeline.statistics.n_events <= 12_000
    assert pipeline.statistics.n_open == 0


def clicks(first, n):
    """One click a slot of 25 ticks, from a slot on."""
    ticks = np.arange(first, first + n) * 25
    return DetectionBlock(ticks, (ticks // 25 % 4 + 1).astype(np.uint8), np.zeros(n, np.uint8), Fraction(40))


def opened(source, **options):
    clock = SlotClock.nominal(Fraction(25))
    return EventPipeline(source, FOUR_DETECTORS, period_ps=1000, window_ps=900, clock=clock, **options)


def test_what_came_before_an_error_is_sifted():
    def breaking():
        yield clicks(0, 1000)
        yield clicks(1000, 1000)
        raise TransportClosedError("the cable is out")

    with opened(breaking(), piece_events=1000) as pipeline:
        next(pipeline)
        next(pipeline)
        with pytest.raises(TransportClosedError):
            next(pipeline)
    assert pipeline.statistics.n_events == 2000
    check_balance(pipeline.statistics)


def test_silence_is_told_in_time_and_asking_again_is_allowed():
    go_on = threading.Event()

    def silent():
        yield clicks(0, 1000)
        go_on.wait(20)
        yield clicks(1000, 1000)

    with opened(silent(), piece_events=1000, timeout_s=0.2) as pipeline:
        next(pipeline)
        with pytest.raises(TransportTimeoutError, match=r"nothing came for 0\.2 s"):
            next(pipeline)
        go_on.set()
        next(pipeline)
        assert pipeline.statistics.n_events == 2000


def test_a_stream_keeps_its_tick_and_has_times_of_its_own():
    first, other = clicks(0, 1000), clicks(1000, 1000)
    with opened([first, replace(other, tick_ps=Fraction(41))], piece_events=1000) as pipeline:
        next(pipeline)
        with pytest.raises(EventError, match="tick changed"):
            next(pipeline)
    fine = replace(first, fine_ticks=np.zeros(1000, np.uint16), fine_tick_ps=Fraction(1))
    with opened([fine]) as pipeline, pytest.raises(EventError, match="T3"):
        next(pipeline)


def test_a_known_clock_needs_no_sync_frame():
    record = PreparationBlock(0, np.arange(5000, dtype=np.uint8) % 4 & 3)
    clock = SlotClock.nominal(Fraction(25))
    report = sift_files([clicks(0, 5000)], [record], period_ps=1000, window_ps=900, sync_pulses=0, clock=clock)
    check_balance(report.receiver, report.sender)
    # Detector 2 * basis + bit is clicked by pulse number modulo 4, and so was sent.
    assert report.kept.tolist() == [[2500, 0, 0], [2500, 0, 0]]
    assert report.errors.sum() == 0
    assert report.gains[:, 0].tolist() == [1.0, 1.0]


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    """Each code block that can run alone, after the commands that its text names."""
    text = (Path(__file__).parents[2] / "docs" / "explanation" / "event-pipeline.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"`qkdhw (link simulate .*?)`", text.replace("\n", " ")):
        assert CliRunner().invoke(app, command.split()).exit_code == 0
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if block.startswith("from")]
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
        assert 0.005 < float(capsys.readouterr().out.split()[0]) < 0.05
