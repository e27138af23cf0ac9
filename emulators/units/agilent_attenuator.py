"""An Agilent 8156A optical attenuator."""

from __future__ import annotations

from typing import ClassVar

from qkdhw_emulators.units.scpi_unit import Handler, RefusedError, ScpiUnit, number_from

FILTER_LOW_DB, FILTER_HIGH_DB, STEP_DB = 0.0, 60.0, 0.001


class EmulatedAgilent8156A(ScpiUnit):
    """Answers 8156A commands byte for byte; attenuation shown is that of the filter plus an offset.

    Source:
        HP 8156A Optical Attenuator User's Guide, chapter "Remote Commands".
    """

    identity: ClassVar[str] = "HEWLETT-PACKARD,HP8156A,3328G00123,1.02"

    def command_table(self) -> dict[str, Handler]:
        """Return what the instrument understands beside the common commands."""
        return {
            "INPut:ATTenuation": self._set_attenuation, "INPut:ATTenuation?": self._read_attenuation,
            "INPut:OFFSet": self._set_offset, "INPut:OFFSet?": lambda: f"{self.offset_db:.3f}",
            "INPut:WAVelength": self._set_wavelength, "INPut:WAVelength?": lambda: f"{self.wavelength_m:.6E}",
            "OUTPut[:STATe]": self._set_shutter, "OUTPut[:STATe]?": lambda: str(int(self.shutter_open)),
        }  # fmt: skip

    def reset(self) -> None:
        """*RST: settings of power-up."""
        self.filter_db = 0.0
        self.offset_db = 0.0
        self.wavelength_m = 1310e-9
        self.shutter_open = False

    @property
    def transmittance(self) -> float:
        """Fraction of the light that passes."""
        return 10 ** (-self.filter_db / 10) if self.shutter_open else 0.0

    def _limits(self) -> tuple[float, float]:
        return FILTER_LOW_DB + self.offset_db, FILTER_HIGH_DB + self.offset_db

    def _set_attenuation(self, text: str) -> None:
        low, high = self._limits()
        shown_db = number_from(text, "DB", low=low, high=high, default=low)
        self.filter_db = round((shown_db - self.offset_db) / STEP_DB) * STEP_DB

    def _read_attenuation(self, which: str = "") -> str:
        low, high = self._limits()
        named = {"": self.filter_db + self.offset_db, "MIN": low, "MAX": high, "DEF": low}
        if which.upper() not in named:
            raise RefusedError(-104, "Data type error")
        return f"{named[which.upper()]:.3f}"

    def _set_offset(self, text: str) -> None:
        self.offset_db = number_from(text, "DB", low=-99.999, high=99.999, default=0.0)

    def _set_wavelength(self, text: str) -> None:
        self.wavelength_m = number_from(text, "M", low=1200e-9, high=1650e-9, default=1310e-9)

    def _set_shutter(self, text: str) -> None:
        if text.upper() not in {"0", "1", "ON", "OFF"}:
            raise RefusedError(-104, "Data type error")
        self.shutter_open = text.upper() in {"1", "ON"}
