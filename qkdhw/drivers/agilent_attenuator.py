"""Driver for the Agilent (HP, Keysight) 8156A optical attenuator.

Source:
    HP 8156A Optical Attenuator User's Guide, chapter "Remote Commands".
"""

from __future__ import annotations

from typing import ClassVar

from qkdhw.drivers.scpi import ScpiInstrument
from qkdhw.drivers.setting import Setting
from qkdhw.drivers.text_instrument import number_of


class Agilent8156A(ScpiInstrument):
    """An 8156A as an `interfaces.Attenuator`; a context manager."""

    vendor: ClassVar[str] = "Agilent"
    model: ClassVar[str] = "8156A"
    unit_kind: ClassVar[str] = "attenuator"
    capabilities: ClassVar[frozenset[str]] = frozenset({"Attenuator"})
    idn_pattern: ClassVar[str] = r"^(agilent|hewlett|hp|keysight).*,\s*(hp)?8156a"

    offset_db = Setting(
        float, unit="dB", minimum=-99.999, maximum=99.999, step=0.001, query=":INP:OFFS?",
        command=":INP:OFFS {value:.3f}", doc="Added to the filter's attenuation.",
    )  # fmt: skip
    attenuation_db = Setting(
        float, unit="dB", minimum=0.0, maximum=60.0, step=0.001, settle_s=0.02, query=":INP:ATT?",
        command=":INP:ATT {value:.3f}", doc="Attenuation shown: filter position plus offset.",
    )  # fmt: skip
    wavelength_nm = Setting(
        float, unit="nm", minimum=1200.0, maximum=1650.0, step=0.1, query=":INP:WAV?",
        command=":INP:WAV {value:.3f}E-9",
        decode=lambda text: number_of(text) * 1e9, doc="Wavelength that the filter is calibrated for.",
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
