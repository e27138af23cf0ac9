"""Drivers for Agilent (HP, Keysight) optical attenuators: the 8156A, and 8156x and 8157x modules in 816x mainframes.

Source:
    HP 8156A Optical Attenuator User's Guide, chapter 8 "Remote Commands"; 8163A/B, 8164A/B & 8166A/B Mainframes
    Programming Guide, chapter 4 "Measurement Operations & Settings" (Root Layer, Signal Conditioning).
"""

from __future__ import annotations

import copy
import re
from typing import Any, ClassVar

from qkdhw.drivers.scpi import ScpiInstrument
from qkdhw.drivers.setting import ChannelSetting, Setting
from qkdhw.drivers.text_instrument import number_of
from qkdhw.errors import CommandRefusedError, ConfigurationError, UnitError
from qkdhw.interfaces import Transport

OUT_OF_RANGE = "-222"
SLOTS = {"3": range(1, 3), "4": range(5), "6": range(1, 18)}  # by the last digit of 8163, 8164, 8166
_MAINFRAME = re.compile(r"(?:HP)?816([346])[AB]", re.IGNORECASE)
_MODULE = re.compile(r"(?:HP)?815[67][0-9][A-Z]?", re.IGNORECASE)


def _nanometres(answer: str) -> float:
    return number_of(answer) * 1e9


class _OffsetAttenuator(ScpiInstrument):
    """What both have: the attenuation shown is that of the filter plus an offset, and so is its range."""

    unit_kind: ClassVar[str] = "attenuator"
    capabilities: ClassVar[frozenset[str]] = frozenset({"Attenuator"})

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        try:
            return super()._write_value(setting, channel, value)
        except CommandRefusedError as error:
            if setting.name != "attenuation_db" or int(error.code) != int(OUT_OF_RANGE):
                raise
            low, high = (
                self._read_value(self._settings[name], channel) for name in ("attenuation_min_db", "attenuation_max_db")
            )
            raise CommandRefusedError(
                f"{self.model} refused {value:g} dB",
                command=error.command,
                code=error.code,
                remedy=f"with its present offset it takes {low:g} to {high:g} dB",
            ) from error


class Agilent8156A(_OffsetAttenuator):
    """An 8156A as an `interfaces.Attenuator`; a context manager."""

    vendor: ClassVar[str] = "Agilent"
    model: ClassVar[str] = "8156A"
    idn_pattern: ClassVar[str] = r"^(agilent|hewlett|hp|keysight).*,\s*(hp)?8156a"

    offset_db = Setting(
        float, unit="dB", minimum=-99.999, maximum=99.999, step=0.001, query=":INP:OFFS?",
        command=":INP:OFFS {value:.3f}", affects=("attenuation_db",),
        doc="Added to the filter's attenuation; the filter does not move.",
    )  # fmt: skip
    wavelength_nm = Setting(
        float, unit="nm", minimum=1200.0, maximum=1650.0, step=0.1, query=":INP:WAV?",
        command=":INP:WAV {value:.3f}E-9", decode=_nanometres, doc="Wavelength that the filter is calibrated for.",
    )  # fmt: skip
    attenuation_db = Setting(
        float, unit="dB", minimum=-99.999, maximum=159.999, step=0.001, settle_s=0.02, range_depends=True,
        query=":INP:ATT?", command=":INP:ATT {value:.3f}",
        doc="Attenuation shown: filter position, 0 to 60 dB, plus offset.",
    )  # fmt: skip
    attenuation_min_db = Setting(
        float, unit="dB", access="r", query=":INP:ATT? MIN", doc="Smallest attenuation with the present offset.",
    )  # fmt: skip
    attenuation_max_db = Setting(
        float, unit="dB", access="r", query=":INP:ATT? MAX", doc="Largest attenuation with the present offset.",
    )  # fmt: skip
    shutter_open = Setting(
        bool, query=":OUTP:STAT?", command=":OUTP:STAT {value:d}", restore=False, doc="Whether light passes.",
    )  # fmt: skip

    def set_attenuation_db(self, attenuation_db: float) -> float:
        """Set the attenuation and return what the unit then has, in dB."""
        return float(self.configure({"attenuation_db": attenuation_db})["attenuation_db"])

    def read_attenuation_db(self) -> float:
        """Read the attenuation, in dB."""
        return self.attenuation_db


class Agilent816x(_OffsetAttenuator):
    """The attenuator modules of an 8163, 8164 or 8166 mainframe, each by its slot; a context manager.

    As an `interfaces.Attenuator` it is one of them.

    Args:
        transport: Open link, owned from now on.
        slot: The module that `set_attenuation_db` and `read_attenuation_db` mean; None for the first one.
        timeout_s: Longest wait for an answer.

    Attributes:
        modules: Model numbers of the attenuator modules, by slot.

    Raises:
        UnitError: The mainframe has no attenuator module.
        ConfigurationError: There is none in `slot`.
    """

    vendor: ClassVar[str] = "Agilent"
    model: ClassVar[str] = "816x"
    idn_pattern: ClassVar[str] = r"^(agilent|hewlett|hp|keysight).*,\s*(hp)?816[346][ab]"

    offset_db = ChannelSetting(
        float, unit="dB", minimum=-200.0, maximum=200.0, step=0.001, channels=(1, 2), query=":INP{channel}:CHAN1:OFFS?",
        command=":INP{channel}:CHAN1:OFFS {value:.3f}", affects=("attenuation_db",),
        doc="Added to the filter's attenuation; the filter does not move.",
    )  # fmt: skip
    wavelength_nm = ChannelSetting(
        float, unit="nm", minimum=1200.0, maximum=1700.0, step=0.1, channels=(1, 2), query=":INP{channel}:CHAN1:WAV?",
        command=":INP{channel}:CHAN1:WAV {value:.3f}E-9", decode=_nanometres, range_depends=True,
        doc="Wavelength that the filter is calibrated for; the module has its own range.",
    )  # fmt: skip
    attenuation_db = ChannelSetting(
        float, unit="dB", minimum=-200.0, maximum=260.0, step=0.001, settle_s=0.02, channels=(1, 2),
        range_depends=True, query=":INP{channel}:CHAN1:ATT?", command=":INP{channel}:CHAN1:ATT {value:.3f}",
        doc="Attenuation shown: filter position, 0 to 60 dB, plus offset.",
    )  # fmt: skip
    attenuation_min_db = ChannelSetting(
        float, unit="dB", access="r", channels=(1, 2), query=":INP{channel}:CHAN1:ATT? MIN",
        doc="Smallest attenuation with the present offset.",
    )  # fmt: skip
    attenuation_max_db = ChannelSetting(
        float, unit="dB", access="r", channels=(1, 2), query=":INP{channel}:CHAN1:ATT? MAX",
        doc="Largest attenuation with the present offset.",
    )  # fmt: skip
    shutter_open = ChannelSetting(
        bool, channels=(1, 2), query=":OUTP{channel}:CHAN1:STAT?", command=":OUTP{channel}:CHAN1:STAT {value:d}",
        restore=False, doc="Whether light passes.",
    )  # fmt: skip

    modules: dict[int, str]

    def __init__(self, transport: Transport, *, slot: int | None = None, timeout_s: float = 2.0) -> None:
        super().__init__(transport, timeout_s=timeout_s)
        self.modules = self._retried(self._find_modules)
        for name, setting in self._settings.items():
            self._settings[name] = copy.copy(setting)
            self._settings[name].channels = tuple(self.modules)
        self._slot = next(iter(self.modules)) if slot is None else slot
        self._check_slot(self._slot)

    def set_attenuation_db(self, attenuation_db: float) -> float:
        """Set the attenuation and return what the module then has, in dB."""
        return float(self.configure({"attenuation_db": {self._slot: attenuation_db}})["attenuation_db"][self._slot])

    def read_attenuation_db(self) -> float:
        """Read the attenuation, in dB."""
        return self.attenuation_db[self._slot]

    def _find_modules(self) -> dict[int, str]:
        mainframe = _MAINFRAME.fullmatch(self._info.model if self._info else "")
        found: dict[int, str] = {}
        for slot in SLOTS[mainframe[1]] if mainframe else range(1, 3):
            if self._ask(f":SLOT{slot}:EMPT?") == "1":
                continue
            fields = [field.strip() for field in self._ask(f":SLOT{slot}:IDN?").split(",")]
            if len(fields) == 4 and _MODULE.fullmatch(fields[1]):
                found[slot] = fields[1]
        if not found:
            raise UnitError("this mainframe holds no attenuator module", remedy="put one in, or check the address")
        return found

    def _check_slot(self, slot: int) -> None:
        if slot not in self.modules:
            there_are = ", ".join(f"{number} ({model})" for number, model in self.modules.items())
            raise ConfigurationError(f"slot {slot} holds no attenuator", remedy=f"attenuators are in {there_are}")
