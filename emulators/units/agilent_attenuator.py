"""Agilent optical attenuators: an 8156A, and an 8163B mainframe with an 81570A and an 81577A module.

Source:
    HP 8156A Optical Attenuator User's Guide, chapter 8 "Remote Commands"; 8163A/B, 8164A/B & 8166A/B Mainframes
    Programming Guide, chapter 4 "Measurement Operations & Settings" (Root Layer, Signal Conditioning).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.scpi_unit import Handler, RefusedError, ScpiUnit, number_from
from qkdhw_emulators.world import World

FILTER_LOW_DB, FILTER_HIGH_DB, STEP_DB = 0.0, 60.0, 0.001


class Filter:
    """A movable filter and a shutter; the attenuation shown is that of the filter plus an offset.

    Args:
        offset_limit_db: Largest offset either way.
        wavelengths_m: Shortest, longest and usual wavelength.
    """

    def __init__(self, offset_limit_db: float, wavelengths_m: tuple[float, float, float]) -> None:
        self._offset_limit_db = offset_limit_db
        self._wavelengths_m = wavelengths_m
        self.reset()

    def reset(self) -> None:
        """Go to the state of power-up."""
        self.filter_db = self.offset_db = 0.0
        self.wavelength_m = self._wavelengths_m[2]
        self.shutter_open = False

    @property
    def transmittance(self) -> float:
        """Fraction of the light that passes."""
        return 10 ** (-self.filter_db / 10) if self.shutter_open else 0.0

    def set_attenuation(self, text: str) -> None:
        """Move the filter."""
        low, high = FILTER_LOW_DB + self.offset_db, FILTER_HIGH_DB + self.offset_db
        shown_db = number_from(text, "DB", low=low, high=high, default=low)
        self.filter_db = round((shown_db - self.offset_db) / STEP_DB) * STEP_DB

    def attenuation_db(self, which: str = "") -> float:
        """Return the attenuation shown, or an end of its range."""
        low, high = FILTER_LOW_DB + self.offset_db, FILTER_HIGH_DB + self.offset_db
        named = {"": self.filter_db + self.offset_db, "MIN": low, "MAX": high, "DEF": low}
        if which.upper() not in named:
            raise RefusedError(-104, "Data type error")
        return named[which.upper()]

    def set_offset(self, text: str) -> None:
        """Set what is added to the filter's attenuation; it does not move."""
        limit_db = self._offset_limit_db
        self.offset_db = round(number_from(text, "DB", low=-limit_db, high=limit_db, default=0.0), 3)

    def set_wavelength(self, text: str) -> None:
        """Set the wavelength that the filter is calibrated for."""
        low, high, usual = self._wavelengths_m
        self.wavelength_m = number_from(text, "M", low=low, high=high, default=usual)

    def set_shutter(self, text: str) -> None:
        """Open or close the shutter."""
        if text.upper() not in {"0", "1", "ON", "OFF"}:
            raise RefusedError(-104, "Data type error")
        self.shutter_open = text.upper() in {"1", "ON"}


class EmulatedAgilent8156A(ScpiUnit):
    """Answers 8156A commands byte for byte."""

    identity: ClassVar[str] = "HEWLETT-PACKARD,HP8156A,3328G00123,1.02"

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self.filter = Filter(99.999, (1200e-9, 1650e-9, 1310e-9))
        super().__init__(world, faults=faults)

    def command_table(self) -> dict[str, Handler]:
        """Return what the instrument understands beside the common commands."""
        return {
            "INPut:ATTenuation": self.filter.set_attenuation,
            "INPut:ATTenuation?": lambda which="": f"{self.filter.attenuation_db(which):.3f}",
            "INPut:OFFSet": self.filter.set_offset,
            "INPut:OFFSet?": lambda: f"{self.filter.offset_db:.3f}",
            "INPut:WAVelength": self.filter.set_wavelength,
            "INPut:WAVelength?": lambda: f"{self.filter.wavelength_m:.7E}",
            "OUTPut[:STATe]": self.filter.set_shutter,
            "OUTPut[:STATe]?": lambda: str(int(self.filter.shutter_open)),
        }

    def reset(self) -> None:
        """*RST: settings of power-up."""
        self.filter.reset()

    @property
    def transmittance(self) -> float:
        """Fraction of the light that passes."""
        return self.filter.transmittance


class EmulatedAgilent816x(ScpiUnit):
    """Answers the commands of an 8163B with attenuator modules in both slots byte for byte."""

    identity: ClassVar[str] = "Agilent Technologies,8163B,MY40012345,V5.01(62637)"
    modules: ClassVar[dict[int, str]] = {
        1: "Agilent Technologies,81570A,DE43600101,09-Nov-04",
        2: "Agilent Technologies,81577A,DE43600202,09-Nov-04",
    }

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self.filters = {slot: Filter(200.0, (1250e-9, 1650e-9, 1550e-9)) for slot in self.modules}
        super().__init__(world, faults=faults)

    def command_table(self) -> dict[str, Handler]:
        """Return what the instrument understands beside the common commands."""
        return {
            "SLOT#:EMPTy?": lambda slot: str(int(slot not in self.modules)),
            "SLOT#:IDN?": self._identify_module,
            "INPut#[:CHANnel#]:ATTenuation": lambda slot, channel, text: self._at(slot, channel).set_attenuation(text),
            "INPut#[:CHANnel#]:ATTenuation?": lambda slot, channel, which="": (
                f"{self._at(slot, channel).attenuation_db(which):+.8E}"
            ),
            "INPut#[:CHANnel#]:OFFSet": lambda slot, channel, text: self._at(slot, channel).set_offset(text),
            "INPut#[:CHANnel#]:OFFSet?": lambda slot, channel: f"{self._at(slot, channel).offset_db:+.8E}",
            "INPut#[:CHANnel#]:WAVelength": lambda slot, channel, text: self._at(slot, channel).set_wavelength(text),
            "INPut#[:CHANnel#]:WAVelength?": lambda slot, channel: f"{self._at(slot, channel).wavelength_m:+.8E}",
            "OUTPut#[:CHANnel#][:STATe]": lambda slot, channel, text: self._at(slot, channel).set_shutter(text),
            "OUTPut#[:CHANnel#][:STATe]?": lambda slot, channel: str(int(self._at(slot, channel).shutter_open)),
        }

    def reset(self) -> None:
        """*RST: settings of power-up."""
        for each in self.filters.values():
            each.reset()

    @property
    def transmittance(self) -> float:
        """Fraction of the light that passes the module in slot 1."""
        return self.filters[1].transmittance

    def _at(self, slot: int, channel: int) -> Filter:
        if slot not in self.filters or channel != 1:
            raise RefusedError(-114, "Header suffix out of range")
        return self.filters[slot]

    def _identify_module(self, slot: int) -> str:
        if slot not in self.modules:
            raise RefusedError(-114, "Header suffix out of range")
        return self.modules[slot]
