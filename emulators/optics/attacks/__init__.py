"""Attackers and faults as knobs that work together, each with its model, source and signature."""

from __future__ import annotations

from qkdhw_emulators.optics.attack import Attack
from qkdhw_emulators.optics.attacks.blinding import AfterGate, BlindingCw, BlindingPulsed
from qkdhw_emulators.optics.attacks.channel_faults import BackgroundLight, FibreCut, FibreSplice, ThermalDrift
from qkdhw_emulators.optics.attacks.detector_faults import DetectorDying, DetectorLatched
from qkdhw_emulators.optics.attacks.intercept import BeamSplitterWavelength, FakedStates, InterceptResend
from qkdhw_emulators.optics.attacks.monitors import MONITORS, Monitor, baseline_monitors
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

__all__ = ["ATTACKS", "MONITORS", "Monitor", "baseline_monitors"]

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        InterceptResend,
        FakedStates,
        BeamSplitterWavelength,
        PhotonNumberSplitting,
        BlindingCw,
        BlindingPulsed,
        AfterGate,
        TimeShift,
        DeadTime,
        CalibrationForgery,
        ClockSteering,
        TrojanHorse,
        LaserSeeding,
        IntensityDrift,
        IntensityCorrelation,
        PhaseNotRandomised,
        CowZeroError,
        FibreCut,
        FibreSplice,
        ThermalDrift,
        BackgroundLight,
        DetectorDying,
        DetectorLatched,
    )
}
"""Attacks and faults by name, as a schedule calls them."""
