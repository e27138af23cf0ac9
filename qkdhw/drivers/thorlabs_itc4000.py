"""Driver for the Thorlabs ITC4000 series: laser diode and TEC controllers.

Source:
    Thorlabs Series 4000 SCPI Programmer's Reference Manual, version 3.3: 3.3 (measurements), 3.4 (LD output), 3.7 (LD
    source), 3.10 to 3.12 (TEC), 3.14.3 (measurement register).
"""

from __future__ import annotations

from typing import Any, ClassVar

from qkdhw.drivers.scpi import ScpiInstrument
from qkdhw.drivers.setting import Setting
from qkdhw.errors import UnitStateError
from qkdhw.model import UnitStatus

CONDITIONS = {
    0: "key_locked", 1: "laser_compliance", 2: "interlock_open", 3: "current_limit", 4: "output_inhibited",
    5: "power_limit", 8: "temperature_protection", 9: "temperature_window", 10: "temperature_sensor",
    11: "tec_compliance", 12: "tec_open", 14: "over_temperature",
}  # fmt: skip
FORBID_LIGHT = (0, 2, 4, 8, 10, 14)
"""Bits of the measurement register with which the laser cannot be switched on."""


class ThorlabsItc4000(ScpiInstrument):
    """An ITC4001, ITC4002QCL, ITC4005 or ITC4020 as an `interfaces.PhotonSource`; a context manager.

    With the laser's monitor photodiode connected it is an `interfaces.OpticalPowerMeter` too.
    """

    vendor: ClassVar[str] = "Thorlabs"
    model: ClassVar[str] = "ITC4000"
    unit_kind: ClassVar[str] = "laser controller"
    capabilities: ClassVar[frozenset[str]] = frozenset({"PhotonSource", "OpticalPowerMeter"})
    schemes: ClassVar[tuple[str, ...]] = ("visa",)
    usb_ids: ClassVar[tuple[str, ...]] = ("1313:804a",)
    idn_pattern: ClassVar[str] = r"^thorlabs,itc40"

    tec_current_limit_a = Setting(
        float, unit="A", minimum=0.1, maximum=15.0, step=0.001, query="SOUR2:CURR:LIM?",
        command="SOUR2:CURR:LIM {value:.4f}", range_depends=True,
        doc="Largest current through the TEC; each model has its own range.",
    )  # fmt: skip
    tec_temperature_c = Setting(
        float, unit="°C", minimum=-55.0, maximum=150.0, step=0.001, query="SOUR2:TEMP?",
        command="SOUR2:TEMP {value:.3f}C", doc="Temperature that the TEC holds.",
    )  # fmt: skip
    tec_on = Setting(bool, query="OUTP2?", command="OUTP2 {value:d}", doc="Whether the TEC works.")
    laser_current_limit_a = Setting(
        float, unit="A", minimum=0.0, maximum=20.0, step=1e-5, query="SOUR:CURR:LIM?",
        command="SOUR:CURR:LIM {value:.6f}", affects=("laser_current_a",), range_depends=True,
        doc="Largest laser current; each model has its own range. A set current above it is lowered.",
    )  # fmt: skip
    laser_current_a = Setting(
        float, unit="A", minimum=0.0, maximum=20.0, step=1e-5, query="SOUR:CURR?", command="SOUR:CURR {value:.6f}",
        range_depends=True, doc="Laser current when the output is on, up to the limit.",
    )  # fmt: skip
    laser_on = Setting(bool, query="OUTP?", command="OUTP {value:d}", restore=False, doc="Whether there is light.")
    measured_laser_current_a = Setting(float, unit="A", access="r", query="MEAS:CURR?", doc="Laser current.")
    measured_laser_voltage_v = Setting(float, unit="V", access="r", query="MEAS:VOLT?", doc="Laser voltage.")
    monitor_current_a = Setting(float, unit="A", access="r", query="MEAS:CURR2?", doc="Current of the photodiode.")
    optical_power_w = Setting(
        float, unit="W", access="r", query="MEAS:POW2?", doc="Power by the photodiode and its responsivity.",
    )  # fmt: skip
    measured_temperature_c = Setting(float, unit="°C", access="r", query="MEAS:TEMP?", doc="Temperature of the laser.")
    tec_current_a = Setting(float, unit="A", access="r", query="MEAS:CURR3?", doc="Current through the TEC.")
    tec_voltage_v = Setting(float, unit="V", access="r", query="MEAS:VOLT3?", doc="Voltage at the TEC.")
    condition_bits = Setting(
        int, access="r", query="STAT:MEAS:COND?", doc="Measurement register: key, interlock, limits, protections.",
    )  # fmt: skip

    def enable_output(self) -> None:
        """Switch the laser on.

        Raises:
            UnitStateError: Key, interlock or a protection forbids it; nothing was sent.
        """
        self.laser_on = True

    def disable_output(self) -> None:
        """Switch the laser off."""
        self.laser_on = False

    def read_output_enabled(self) -> bool:
        """Say whether the laser is on."""
        return self.laser_on

    def read_power_w(self) -> float:
        """Return the optical power by the monitor photodiode, in W."""
        return self.optical_power_w

    def read_status(self) -> UnitStatus:
        """Read whether there is light, the monitors, and what key, interlock and protections say now."""
        bits = self.condition_bits
        monitors = dict(super().read_status().monitors)
        del monitors["condition_bits"]
        state = "running" if self.laser_on else "idle"
        alarms = tuple(name for bit, name in CONDITIONS.items() if bits >> bit & 1)
        return UnitStatus(state=state, monitors=monitors, alarms=alarms)

    def configure(self, settings: Any) -> Any:
        """Set values as every instrument does; switching the laser on is refused while something forbids light.

        Raises:
            UnitStateError: Key, interlock or a protection forbids light; nothing was sent.
        """
        if settings.get("laser_on") is True:
            bits = self.condition_bits
            if forbidding := [CONDITIONS[bit] for bit in FORBID_LIGHT if bits >> bit & 1]:
                raise UnitStateError(
                    f"the laser cannot be switched on: {', '.join(forbidding)}",
                    remedy="turn the key, close the interlock, or see to the protection that acts; then try again",
                )
        return super().configure(settings)

    def _synchronise(self) -> None:
        """As for SCPI; and temperatures are in degrees Celsius from now on."""
        super()._synchronise()
        self._write_line("UNIT:TEMP C")
