"""A Thorlabs ITC4001 laser diode and TEC controller, with a laser diode, its photodiode and its TEC.

Source:
    Thorlabs Series 4000 SCPI Programmer's Reference Manual, version 3.3: 3.3 (measurements), 3.4 (LD output), 3.7 (LD
    source), 3.10 to 3.12 (TEC), 3.14.3 (measurement register).
"""

from __future__ import annotations

import math
from typing import ClassVar

from qkdhw_emulators.servers.usb_unit import UsbDescriptor
from qkdhw_emulators.servers.usbtmc import usbtmc_descriptor
from qkdhw_emulators.units.scpi_unit import Handler, RefusedError, ScpiUnit, number_from

SERIAL_NUMBER = "M00123456"
LASER_A, TEC_A = 1.0, 8.0  # largest currents of the ITC4001
STEP_A, STEP_C = 1e-5, 1e-3
ZERO_C_K = 273.15
SLOPE_W_PER_A, RESPONSIVITY_A_PER_W, THRESHOLD_SCALE_C = 0.25, 0.01, 60.0
SETTLE_S, DRIFT_S, WINDOW_C = 2.0, 60.0, 1.0
KEY, COMPLIANCE, INTERLOCK, CURRENT_LIMIT, SENSOR, WINDOW = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 10, 1 << 9
FORBID_LIGHT = KEY | INTERLOCK | SENSOR


class EmulatedThorlabsItc4000(ScpiUnit):
    """Answers ITC4001 commands byte for byte; light above the diode's threshold, a TEC that takes its time."""

    identity: ClassVar[str] = f"THORLABS,ITC4001,{SERIAL_NUMBER},1.4.0/2.0.3/1.6.0"
    usb_descriptor: ClassVar[UsbDescriptor] = usbtmc_descriptor(0x1313, 0x804A, "Thorlabs", "ITC4001", SERIAL_NUMBER)
    conditions: ClassVar[dict[str, float]] = {
        "interlock_closed": 1, "key_on": 1, "sensor_connected": 1, "ambient_temperature_c": 23.0,
        "diode_threshold_a": 0.05, "diode_compliance_a": 10.0,
    }  # fmt: skip

    def command_table(self) -> dict[str, Handler]:
        """Return what the instrument understands beside the common commands."""
        return {
            "OUTPut[1][:STATe]": self._set_laser, "OUTPut[1][:STATe]?": lambda: str(int(self.laser_on)),
            "OUTPut2[:STATe]": self._set_tec, "OUTPut2[:STATe]?": lambda: str(int(self.tec_on)),
            "OUTPut[1]:PROTection:INTLock:TRIPped?": lambda: str(int(bool(self._bits() & INTERLOCK))),
            "OUTPut[1]:PROTection:KEYLock:TRIPped?": lambda: str(int(bool(self._bits() & KEY))),
            "SOURce[1]:CURRent[:LEVel][:IMMediate][:AMPLitude]": self._set_current,
            "SOURce[1]:CURRent[:LEVel][:IMMediate][:AMPLitude]?": lambda which="": self._told(
                which, self.current_a, 0.0, self.current_limit_a
            ),
            "SOURce[1]:CURRent:LIMit[:AMPLitude]": self._set_current_limit,
            "SOURce[1]:CURRent:LIMit[:AMPLitude]?": lambda which="": self._told(
                which, self.current_limit_a, 0.0, LASER_A
            ),
            "SOURce2:CURRent:LIMit[:AMPLitude]": self._set_tec_limit,
            "SOURce2:CURRent:LIMit[:AMPLitude]?": lambda which="": self._told(which, self.tec_limit_a, 0.1, TEC_A),
            "SOURce[2]:TEMPerature[:SPOint]": self._set_temperature,
            "SOURce[2]:TEMPerature[:SPOint]?": lambda: f"{self._in_unit(self.set_point_c):.9E}",
            "UNIT:TEMPerature": self._set_unit, "UNIT:TEMPerature?": lambda: self.temperature_unit,
            "MEASure[:SCALar]:CURRent[1][:DC]?": lambda: f"{self.laser_current_a():.9E}",
            "MEASure[:SCALar]:VOLTage[1][:DC]?": lambda: f"{1.1 * bool(self.laser_current_a()):.9E}",
            "MEASure[:SCALar]:CURRent2[:DC]?": lambda: f"{self.optical_power_w() * RESPONSIVITY_A_PER_W:.9E}",
            "MEASure[:SCALar]:POWer2[:DC]?": lambda: f"{self.optical_power_w():.9E}",
            "MEASure[:SCALar]:TEMPerature?": lambda: f"{self._in_unit(self.temperature_c()):.9E}",
            "MEASure[:SCALar]:CURRent3[:DC]?": lambda: f"{self._tec_current_a():.9E}",
            "MEASure[:SCALar]:VOLTage3[:DC]?": lambda: f"{1.5 * self._tec_current_a():.9E}",
            "STATus:MEASurement:CONDition?": lambda: str(self._bits()),
        }  # fmt: skip

    def reset(self) -> None:
        """*RST: outputs off; settings of power-up."""
        self.laser_on = self.tec_on = False
        self.current_a, self.current_limit_a, self.tec_limit_a, self.set_point_c = 0.0, 0.2, 2.0, 25.0
        self.temperature_unit = "C"
        self._at_c, self._at_s = self.world.conditions["ambient_temperature_c"], self.world.now_s()

    def answer(self, line: str) -> bytes:
        """Carry out a line; before, the protections act on what happened meanwhile."""
        if self._bits() & FORBID_LIGHT:
            self.laser_on = False
        return super().answer(line)

    def laser_current_a(self) -> float:
        """Return the current through the diode."""
        on = self.laser_on and not self._bits() & FORBID_LIGHT
        return min(self.current_a, self.world.conditions["diode_compliance_a"]) if on else 0.0

    def optical_power_w(self) -> float:
        """Return the diode's light: a straight line above a threshold that rises with the temperature."""
        warm = math.exp((self.temperature_c() - 25.0) / THRESHOLD_SCALE_C)
        return SLOPE_W_PER_A * max(0.0, self.laser_current_a() - self.world.conditions["diode_threshold_a"] * warm)

    def temperature_c(self) -> float:
        """Return the diode's temperature: on its way to the set point, or back to that of the room."""
        aim_c = self.set_point_c if self.tec_on else self.world.conditions["ambient_temperature_c"]
        passed = math.exp(-(self.world.now_s() - self._at_s) / (SETTLE_S if self.tec_on else DRIFT_S))
        return aim_c + (self._at_c - aim_c) * passed

    def _keep_temperature(self) -> None:
        """Remember where the temperature is now, before its aim changes."""
        self._at_c, self._at_s = self.temperature_c(), self.world.now_s()

    def _bits(self) -> int:
        """Return the measurement register's condition."""
        there = self.world.conditions
        bits = 0 if there["key_on"] else KEY
        bits |= 0 if there["interlock_closed"] else INTERLOCK
        bits |= 0 if there["sensor_connected"] else SENSOR
        if self.laser_on:
            bits |= COMPLIANCE if self.current_a > there["diode_compliance_a"] else 0
            bits |= CURRENT_LIMIT if self.current_a >= self.current_limit_a else 0
        if self.tec_on and abs(self.temperature_c() - self.set_point_c) > WINDOW_C:
            bits |= WINDOW
        return bits

    def _tec_current_a(self) -> float:
        if not self.tec_on:
            return 0.0
        pull_c = self.world.conditions["ambient_temperature_c"] - self.set_point_c
        return max(-self.tec_limit_a, min(self.tec_limit_a, 0.05 * pull_c))

    def _set_laser(self, text: str) -> None:
        wanted = switch(text)
        if wanted and self._bits() & FORBID_LIGHT:
            raise RefusedError(-221, "Settings conflict")
        self.laser_on = wanted

    def _set_tec(self, text: str) -> None:
        wanted = switch(text)
        if wanted and self._bits() & SENSOR:
            raise RefusedError(-221, "Settings conflict")
        self._keep_temperature()
        self.tec_on = wanted

    def _set_current(self, text: str) -> None:
        self.current_a = quantised(number_from(text, "A", low=0.0, high=self.current_limit_a, default=0.0), STEP_A)

    def _set_current_limit(self, text: str) -> None:
        self.current_limit_a = quantised(number_from(text, "A", low=0.0, high=LASER_A, default=0.2), STEP_A)
        self.current_a = min(self.current_a, self.current_limit_a)

    def _set_tec_limit(self, text: str) -> None:
        self.tec_limit_a = quantised(number_from(text, "A", low=0.1, high=TEC_A, default=2.0), 1e-3)

    def _set_temperature(self, text: str) -> None:
        unit = text[-1:].upper()
        unit, digits = (unit, text[:-1]) if unit in {"C", "K", "F"} else (self.temperature_unit, text)
        value = number_from(digits, low=-500.0, high=500.0, default=25.0)
        set_c = {"C": value, "K": value - ZERO_C_K, "F": (value - 32) / 1.8}[unit]
        if not -55.0 <= set_c <= 150.0:
            raise RefusedError(-222, "Data out of range")
        self._keep_temperature()
        self.set_point_c = quantised(set_c, STEP_C)

    def _set_unit(self, text: str) -> None:
        unit = text.upper()[:1]
        if unit not in {"C", "K", "F"}:
            raise RefusedError(-104, "Data type error")
        self.temperature_unit = unit

    def _in_unit(self, value_c: float) -> float:
        return {"C": value_c, "K": value_c + ZERO_C_K, "F": value_c * 1.8 + 32}[self.temperature_unit]

    def _told(self, which: str, value: float, low: float, high: float) -> str:
        named = {"": value, "MIN": low, "MAX": high}
        if which.upper()[:3] not in named:
            raise RefusedError(-104, "Data type error")
        return f"{named[which.upper()[:3]]:.9E}"


def switch(text: str) -> bool:
    """Read a boolean."""
    if text.upper() not in {"0", "1", "ON", "OFF"}:
        raise RefusedError(-104, "Data type error")
    return text.upper() in {"1", "ON"}


def quantised(value: float, step: float) -> float:
    """Return the nearest multiple of a step."""
    return round(value / step) * step
