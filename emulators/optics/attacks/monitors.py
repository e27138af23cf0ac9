"""What a link's own monitors read: a name says the unit, and an attack changes what it would change."""

from __future__ import annotations

from dataclasses import dataclass

from qkdhw_emulators.optics.setup import OpticalSetup


@dataclass(frozen=True, slots=True)
class Monitor:
    """A monitor of a link.

    Attributes:
        normal: What it reads while nothing is wrong, in the unit that its name ends in.
        meaning: What it measures.
    """

    normal: float
    meaning: str


MONITORS: dict[str, Monitor] = {
    "laser_power_dbm": Monitor(0.0, "sender: laser before its attenuator"),
    "back_reflection_dbm": Monitor(-80.0, "sender: light that enters from the channel"),
    "input_power_dbm": Monitor(-80.0, "receiver: mean light from the channel; the floor of the power meter"),
    "photocurrent_ua": Monitor(0.01, "receiver: mean bias current of the detectors"),
    "temperature_c": Monitor(25.0, "channel: temperature of the fibre"),
    "sync_offset_ps": Monitor(0.0, "receiver: synchronisation signal against the clock that it held before"),
}
"""Monitors by name."""


def baseline_monitors(setup: OpticalSetup) -> dict[str, float]:
    """Return what the monitors of a link read while nothing is wrong."""
    del setup
    return {name: monitor.normal for name, monitor in MONITORS.items()}
