"""Driver and emulator of the Acme VA2, a variable optical attenuator.

Source: Acme VA2 Programming Manual rev. A, chapter 3 (fictional).
"""

from typing import ClassVar

from qkdhw.drivers.setting import Reply, Setting
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw_emulators.units.table_unit import Entry, TableUnit


class AcmeVa2(TextInstrument):
    """The VA2 as an `interfaces.Attenuator`; a context manager."""

    vendor = "Acme"
    model = "VA2"
    unit_kind = "attenuator"
    capabilities = frozenset({"Attenuator"})
    idn_pattern = "^Acme,VA2,"
    done = "OK"
    refusal = "ERR"
    attenuation_db = Setting(
        float, unit="dB", minimum=0, maximum=60, step=0.05, settle_s=0.01, reply=Reply.ACK,
        query="ATT?", command="ATT {value:.3f}", doc="Attenuation at `wavelength_nm`.",
    )  # fmt: skip
    wavelength_nm = Setting(
        float, unit="nm", minimum=1260, maximum=1650, step=1, reply=Reply.ACK,
        query="WAV?", command="WAV {value:.1f}", doc="Wavelength that the attenuation is calibrated for.",
    )  # fmt: skip

    def set_attenuation_db(self, attenuation_db: float) -> float:
        """Set the attenuation and return what the unit then has, in dB."""
        return float(self.configure({"attenuation_db": attenuation_db})["attenuation_db"])

    def read_attenuation_db(self) -> float:
        """Read the attenuation, in dB."""
        return self.attenuation_db


class EmulatedAcmeVa2(TableUnit):
    """The VA2: it keeps its numbers, rounded."""

    identity = "Acme,VA2,0042,1.0"
    table: ClassVar[dict[str, Entry]] = {"ATT": Entry(0, 60, step=0.05), "WAV": Entry(1260, 1650, at_power_up=1550)}
