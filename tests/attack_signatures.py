"""What shows each attack: on which link, in which statistic, by how much, and after how many events one can tell.

Expected values are closed forms in physical parameters, with no help from the tables of the emulated link. What is
counted comes from what a receiver's tagger writes, a sender's record and a receiver's switch. Run as a program, it prints
the tables of docs/reference/attacks.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic.fields import FieldInfo

from binomial_law import events_needed
from qkdhw_emulators.optics.attack import Attack, DetectorCondition, LinkCondition
from qkdhw_emulators.optics.attacks import ATTACKS, MONITORS, baseline_monitors
from qkdhw_emulators.optics.attacks.blinding import AfterGate, BlindingCw, BlindingPulsed
from qkdhw_emulators.optics.attacks.channel_faults import BackgroundLight, FibreCut, FibreSplice, ThermalDrift
from qkdhw_emulators.optics.attacks.detector_faults import DetectorDying, DetectorLatched
from qkdhw_emulators.optics.attacks.intercept import BeamSplitterWavelength, FakedStates, InterceptResend
from qkdhw_emulators.optics.attacks.photon_number import PhotonNumberSplitting
from qkdhw_emulators.optics.attacks.sender_light import (
    CowZeroError,
    IntensityCorrelation,
    IntensityDrift,
    LaserSeeding,
    PhaseNotRandomised,
    TrojanHorse,
)
from qkdhw_emulators.optics.attacks.timing import CalibrationForgery, ClockSteering, DeadTime, TimeShift
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import Channel, Detector, Gate, Intensity, OpticalSetup, Receiver, Source, Tagger
from qkdhw_emulators.optics.simulation import LinkSimulation

MU, OFTEN = np.array((0.5, 0.1, 2e-4)), np.array((0.6, 0.3, 0.1))
KM, ETA, ERROR = 100.0, 0.01, 0.02
PERIOD_PS, DARK_HZ, JITTER_PS, DEAD_PS = 10_000, 50.0, 30.0, 50_000.0
P_DARK = DARK_HZ * PERIOD_PS * 1e-12
WINDOW_PS, GATE_PS = 500.0, 1_000.0
N_DETECTORS = 4


# --- the link and what is seen of it ----------------------------------------------------------------------------
def reference_link(choice: str = "passive", *, gated: bool = False, jitter_ps: float = JITTER_PS) -> OpticalSetup:
    """100 MHz, decoy states, 20 dB of fibre, four good detectors, an even choice of bases."""
    detector = Detector(dark_count_rate_hz=DARK_HZ, jitter_ps=jitter_ps, dead_time_ns=DEAD_PS / 1e3)
    return OpticalSetup(
        source=Source(
            pulse_rate_hz=1_000_000_000_000 // PERIOD_PS,
            intensities=tuple(Intensity(mean_photon_number=m, probability=p) for m, p in zip(MU, OFTEN, strict=True)),
        ),
        channel=Channel(length_km=KM, attenuation_db_per_km=0.2),
        receiver=Receiver(
            basis_choice=choice,
            misalignment=(ERROR, ERROR, 0.0),
            detectors=(detector,) * N_DETECTORS,
            gate=Gate(width_ps=GATE_PS) if gated else Gate(),
        ),
        tagger=Tagger(clock_offset_s=0.0),
    )


@dataclass(frozen=True)
class Seen:
    """Clicks of a run, in the order of time: channel, pulse, time from it, what was sent there, and measured."""

    channel: NDArray[np.uint8]
    pulse: NDArray[np.int64]
    late_ps: NDArray[np.float64]
    intensity: NDArray[np.int64]
    basis: NDArray[np.int64]
    bit: NDArray[np.int64]
    previous: NDArray[np.int64]
    measured: NDArray[np.int64]
    n_pulses: int
    monitors: dict[str, float]

    @property
    def matched(self) -> NDArray[np.bool_]:
        return (self.channel // 2 == self.basis) & (self.measured == self.basis)

    @property
    def patterns(self) -> NDArray[np.int64]:
        """Which detectors clicked, as bits, of each pulse with a click."""
        pulses, which = np.unique(self.pulse, return_inverse=True)
        pattern = np.zeros(len(pulses), np.int64)
        np.bitwise_or.at(pattern, which, 1 << self.channel.astype(np.int64))
        return pattern


def observe(setup: OpticalSetup, attacks: tuple[Attack, ...], n_pulses: float, seed: int = 1) -> Seen:
    """Run a link over so many pulses."""
    ticks, channels, end = [], [], 0
    with LinkSimulation(setup, seed=seed, schedule=Schedule(attacks)) as link:
        while (end + 1) * PERIOD_PS < n_pulses * PERIOD_PS:
            cell = link.next_cell()
            ticks.append(cell.bob.ticks)
            channels.append(cell.bob.channel)
            end = cell.bob.end_ticks // PERIOD_PS - 1
        time_ps, channel = np.concatenate(ticks) + 0.5, np.concatenate(channels)
        pulse = np.rint(time_ps / PERIOD_PS).astype(np.int64)
        keep = (pulse > 0) & (pulse < end)
        pulse, channel, time_ps = pulse[keep], channel[keep], time_ps[keep]
        choice = link.prepared_at(pulse).astype(np.int64)
        previous = link.prepared_at(pulse - 1).astype(np.int64)
        switched = setup.receiver.basis_choice == "active"
        measured = link.measured_at(pulse).astype(np.int64) if switched else channel.astype(np.int64) // 2
    return Seen(
        channel, pulse, time_ps - pulse * float(PERIOD_PS), choice // 6, choice // 2 % 3, choice % 2, previous // 6,
        measured, end - 1, cell.monitors,
    )  # fmt: skip


Count = tuple[int, int]


def errors(seen: Seen) -> Count:
    return int((seen.channel % 2 != seen.bit)[seen.matched].sum()), int(seen.matched.sum())


def doubles(seen: Seen) -> Count:
    pattern = seen.patterns
    return int((pattern & (pattern - 1) != 0).sum()), len(pattern)


def cross_basis_doubles(seen: Seen) -> Count:
    pattern = seen.patterns
    return int(((pattern & 3 != 0) & (pattern & 12 != 0)).sum()), len(pattern)


def decoys(seen: Seen) -> Count:
    return int((seen.intensity == 1).sum()), len(seen.pulse)


def after_signal(seen: Seen) -> Count:
    return int((seen.previous == 0).sum()), len(seen.pulse)


def late(seen: Seen) -> Count:
    return int((seen.late_ps > 0).sum()), len(seen.pulse)


def late_ones(seen: Seen) -> Count:
    """Early clicks of bit 0 and late ones of bit 1."""
    return int(((seen.late_ps > 0) == (seen.channel % 2 == 1)).sum()), len(seen.pulse)


def outside(seen: Seen) -> Count:
    return int((np.abs(seen.late_ps) > WINDOW_PS).sum()), len(seen.pulse)


def in_second_half(seen: Seen) -> Count:
    return int((seen.pulse > seen.n_pulses / 2).sum()), len(seen.pulse)


def on_first_detector(seen: Seen) -> Count:
    return int((seen.channel == 0).sum()), len(seen.pulse)


def in_pulses(seen: Seen) -> Count:
    return len(seen.pulse), seen.n_pulses


# --- closed forms -----------------------------------------------------------------------------------------------
def phi(x: float) -> float:
    return NormalDist().cdf(x)


def any_click(light: NDArray[np.float64] | float, n_detectors: int) -> NDArray[np.float64]:
    """Of several detectors that share some light."""
    found: NDArray[np.float64] = 1 - (1 - P_DARK) ** n_detectors * np.exp(-np.asarray(light))
    return found


def clicks_of(mu: NDArray[np.float64] = MU) -> NDArray[np.float64]:
    """Clicks per pulse of each intensity: four independent detectors, rare enough to add up."""
    arms = [mu * ETA / 2 * share for share in ((1 - ERROR), ERROR, 0.5, 0.5)]
    return np.sum([any_click(light, 1) for light in arms], axis=0)


CLICKS = float(OFTEN @ clicks_of())
NOISE_SHARE = N_DETECTORS * P_DARK / CLICKS
NOISE_OUTSIDE = 1 - 2 * WINDOW_PS / PERIOD_PS


def qber(error: float, light_factor: float = 1.0) -> float:
    """Of weak light, with dark counts in each of two detectors."""
    light = float(OFTEN @ MU) * ETA / 2 * light_factor
    return (error * light + P_DARK) / (light + 2 * P_DARK)


def resent(error: float, fraction: float, bases: int) -> float:
    by_eve = fraction * (1 - 1 / bases) / 2
    return by_eve + (1 - 2 * by_eve) * error


def faked_qber(r: float) -> float:
    """2r / (1 + 3r) of a receiver without misalignment: half of the time she measures in the receiver's basis."""
    in_her_basis, in_the_other = (1 - ERROR) * r + ERROR, (1 + r) / 2
    total = (in_the_other + in_her_basis) / 2
    return qber((r / 2 + in_her_basis / 2) / 2 / total, light_factor=2 * total)


def cross_double_share(control: float = 0.5) -> float:
    light = MU * ETA
    both = any_click(light * control, 2) * any_click(light * (1 - control), 2)
    return float(OFTEN @ both / (OFTEN @ any_click(light, 4)))


def double_share() -> float:
    """Two or more of four detectors; the sender's basis splits one arm unevenly, the other evenly."""
    light = MU * ETA / 2
    one = [any_click(light * share, 1) for share in ((1 - ERROR), ERROR, 0.5, 0.5)]
    none = np.prod([1 - p for p in one], axis=0)
    single = sum(none / (1 - p) * p for p in one)
    return float(OFTEN @ (1 - none - single) / (OFTEN @ (1 - none)))


def decoy_share(split: bool) -> float:
    gains = MU * ETA
    if split:
        several = 1 - (1 + MU) * np.exp(-MU)
        gains = -np.expm1(-MU[0] * ETA) * several / several[0]
    clicks = OFTEN * (gains + N_DETECTORS * P_DARK)
    return float(clicks[1] / clicks.sum())


def outside_share(more_outside: float = 0.0, more: float = 0.0) -> float:
    """Of clicks, if so many more come for each that there was before, outside and in all."""
    return (NOISE_SHARE * NOISE_OUTSIDE + more_outside) / (1 + more)


def shifted_share(shift_ps: float) -> float:
    return NOISE_SHARE / 2 + (1 - NOISE_SHARE) * phi(shift_ps / JITTER_PS)


def warming_share(attack: ThermalDrift, n_pulses: float) -> float:
    ps_per_s = attack.kelvin_per_s * 38.0 * KM
    steps = np.linspace(0, n_pulses * PERIOD_PS * 1e-12, 1001)
    return float(np.mean([shifted_share(ps_per_s * t) for t in steps]))


# --- one entry for each attack ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Signature:
    """An attack on the reference link and the statistic that shows it.

    Attributes:
        attack: With the parameters of the table.
        shown_by: For the table.
        count: Events and trials.
        trials: What the trials are called in the table.
        clean: Probability without the attack.
        attacked: Probability with it.
        setup: The link.
        pulses: How many a test looks at.
        monitor: A monitor that shows it too, or alone.
    """

    attack: Attack
    shown_by: str
    count: Callable[[Seen], Count] | None = None
    trials: str = "clicks"
    clean: float = 0.0
    attacked: float = 0.0
    setup: OpticalSetup = field(default_factory=reference_link)
    pulses: float = 2e7
    monitor: str = ""

    @property
    def events(self) -> str:
        """How many are needed, for the table; of a rate, how many clicks are expected in the time that is needed."""
        if self.count is None:
            return "1 reading" if self.monitor else "cannot be seen, policy must refuse"
        needed = events_needed(self.clean, self.attacked)
        if self.count is in_pulses:
            needed = math.ceil(needed * self.clean)
        return f"{needed:,} {self.trials if needed > 1 else self.trials.removesuffix('s')}"

    @property
    def readings(self) -> dict[str, float]:
        """What the monitors read when a test has seen its pulses."""
        detectors = [DetectorCondition() for _ in range(N_DETECTORS)]
        condition = LinkCondition(detectors, monitors=baseline_monitors(self.setup))
        self.attack.change_condition(condition, self.setup, self.pulses * PERIOD_PS * 1e-12)
        return condition.monitors


ONE_WARM = ThermalDrift(kelvin_per_s=1.0)
WARM_PULSES = 2e6
PREPULSES = 3 * 0.001 / CLICKS
STRAY = 1e5 * PERIOD_PS * 1e-12 / CLICKS

SIGNATURES = (
    Signature(
        InterceptResend(fraction=0.4), "QBER 2 % rises by f/4 (three bases: f/3)", errors, "sifted bits",
        qber(ERROR), qber(resent(ERROR, 0.4, 2)),
    ),
    Signature(
        FakedStates(efficiency_ratio=0.1), "QBER 2r/(1+3r); bit depends on arrival time", errors, "sifted bits",
        qber(ERROR, light_factor=2), faked_qber(0.1), reference_link("active"),
    ),
    Signature(
        BeamSplitterWavelength(control=0.99), "two clicks in different bases become rare", cross_basis_doubles,
        "pulses with a click", cross_double_share(), cross_double_share(0.99),
    ),
    Signature(
        PhotonNumberSplitting(), "gain of the decoy falls, QBER of the signal stays", decoys, "clicks", decoy_share(False),
        decoy_share(True),
    ),
    Signature(
        BlindingCw(), "no two clicks in a pulse; no darks", doubles, "pulses with a click", double_share(), 0.0,
        monitor="photocurrent_ua",
    ),
    Signature(
        BlindingPulsed(), "no two clicks in a pulse; no darks", doubles, "pulses with a click", double_share(), 0.0,
        monitor="input_power_dbm",
    ),
    Signature(
        AfterGate(), "clicks outside the gate", outside, "clicks", 0.0,
        1 - N_DETECTORS * P_DARK * GATE_PS / PERIOD_PS / CLICKS, reference_link(gated=True, jitter_ps=0.0), 2e6,
    ),
    Signature(
        TimeShift(), "bit depends on arrival time", late_ones, "clicks", 0.5,
        NOISE_SHARE * 4 / 3 / 2 + (1 - NOISE_SHARE * 4 / 3) * (phi(100 / JITTER_PS) / 1.5 + phi(-100 / JITTER_PS) / 3),
    ),
    Signature(
        DeadTime(), "clicks before the pulse; clicks while other detectors are dead", outside, "clicks",
        outside_share(), outside_share(PREPULSES, PREPULSES), pulses=2e6,
    ),
    Signature(
        CalibrationForgery(), "arrival times of bits 0 and 1 differ", late_ones, "clicks", 0.5, shifted_share(100),
        pulses=2e6,
    ),
    Signature(
        ClockSteering(step_ps=50, ppm=0), "arrival times move", late, "clicks", 0.5, shifted_share(50),
        monitor="sync_offset_ps",
    ),
    Signature(TrojanHorse(), "counts stay as they are", monitor="back_reflection_dbm"),
    Signature(
        LaserSeeding(), "gains rise, as with less loss", in_pulses, "clicks", CLICKS, float(OFTEN @ clicks_of(1.2 * MU)),
        monitor="laser_power_dbm",
    ),
    Signature(
        IntensityDrift(per_s=1.0), "gains drift within half a second, as with less loss", in_second_half, "clicks",
        0.5, 1 / (1 + 2 ** -0.25), pulses=5e7,
    ),
    Signature(
        IntensityCorrelation(), "gain after a signal pulse differs", after_signal, "clicks", OFTEN[0],
        (1 - NOISE_SHARE) * 1.2 * 0.6 / 1.12 + NOISE_SHARE * 0.6,
    ),
    Signature(PhaseNotRandomised(), "nothing"),
    Signature(CowZeroError(), "nothing: QBER 0 and visibility 1 stay"),
    Signature(
        FibreCut(), "gains fall to the dark counts", in_pulses, "clicks", CLICKS, N_DETECTORS * P_DARK,
    ),
    Signature(
        FibreSplice(), "arrival times step, here by 49 ns; gains change", outside, "clicks", outside_share(),
        1 - NOISE_SHARE * (1 - NOISE_OUTSIDE) * 10 ** 0.02, pulses=2e6,
    ),
    Signature(
        ONE_WARM, "arrival times drift, here for 20 ms", late, "clicks", 0.5, warming_share(ONE_WARM, WARM_PULSES),
        pulses=WARM_PULSES, monitor="temperature_c",
    ),
    Signature(
        BackgroundLight(), "clicks between the pulses", outside, "clicks", outside_share(),
        outside_share(NOISE_OUTSIDE * STRAY, STRAY),
    ),
    Signature(
        DetectorDying(efficiency_factor=0.9), "its share of the clicks falls, here by a tenth", on_first_detector,
        "clicks", 0.25, 0.9 / 3.9,
    ),
    Signature(DetectorLatched(), "it never clicks", on_first_detector, "clicks", 0.25, 0.0, pulses=2e6),
)  # fmt: skip


def table() -> list[str]:
    """Return the lines of the table in docs/reference/attacks.md."""
    lines = ["| attack | what it does | shown by | until told apart | monitor |", "|---|---|---|---|---|"]
    for s in SIGNATURES:
        summary = (type(s.attack).__doc__ or "").split("\n", 1)[0].rstrip(".")
        monitor = f"{s.monitor}: {MONITORS[s.monitor].normal:g} to {s.readings[s.monitor]:.4g}" if s.monitor else ""
        lines.append(f"| `{parameters(s.attack)}` | {summary} | {s.shown_by} | {s.events} | {monitor} |")
    return lines


def parameters(attack: Attack) -> str:
    """Write an attack as the command line takes it."""
    given = attack.model_dump(exclude_defaults=True)
    fields = ",".join(f"{name}={value:g}" for name, value in given.items())
    return f"{attack.name}:{fields}" if fields else attack.name


UNITS = {
    "ppm_per_s": "ppm/s", "kelvin_per_s": "K/s", "per_s": "1/s", "ppm": "ppm", "_ps": "ps", "_s": "s", "_km": "km",
    "_dbm": "dBm", "_db": "dB", "_hz": "Hz", "_ua": "uA",
}  # fmt: skip


def field_table() -> list[str]:
    """Return the lines of the table of fields in docs/reference/attacks.md."""
    lines = ["| attack | field | unit | default | range | meaning |", "|---|---|---|---|---|---|"]
    for name, kind in ATTACKS.items():
        own = [(field, info) for field, info in kind.model_fields.items() if field not in Attack.model_fields]
        lines += [] if own else [f"| `{name}` | none |  |  |  |  |"]
        for field_name, info in own:
            unit = next((unit for end, unit in UNITS.items() if field_name.endswith(end)), "")
            said = re.search(rf"^        {field_name}: (.+)$", kind.__doc__ or "", re.MULTILINE)
            meaning = said[1] if said else ""
            lines.append(f"| `{name}` | `{field_name}` | {unit} | {info.default:g} | {_range(info)} | {meaning} |")
    return lines


def _range(info: FieldInfo) -> str:
    if choices := get_args(info.annotation):
        return " or ".join(map(str, choices))
    limits = {
        end: getattr(part, end) for part in info.metadata for end in ("ge", "gt", "le", "lt") if hasattr(part, end)
    }
    low = f"{limits['ge']:g}" if "ge" in limits else f"above {limits['gt']:g}"
    return f"{low} to {limits['le']:g}"


if __name__ == "__main__":
    print("\n".join([*table(), "", *field_table()]))
    missing = set(ATTACKS) - {s.attack.name for s in SIGNATURES}
    if missing:
        raise SystemExit(f"without a signature: {', '.join(sorted(missing))}")
