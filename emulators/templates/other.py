"""Driver and emulator of the Acme SW4, an optical switch.

Source: Acme SW4 Programming Manual rev. A, chapter 2 (fictional).
"""

from typing import ClassVar

from qkdhw.drivers.setting import Reply, Setting
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw_emulators.units.table_unit import Entry, TableUnit


class AcmeSw4(TextInstrument):
    """The SW4 as an `interfaces.Unit`, of a kind of its own; a context manager."""

    vendor = "Acme"
    model = "SW4"
    unit_kind = "optical switch"
    capabilities = frozenset({"Unit"})
    idn_pattern = "^Acme,SW4,"
    done = "OK"
    refusal = "ERR"
    route = Setting(
        int, minimum=1, maximum=4, settle_s=0.01, reply=Reply.ACK,
        query="RTE?", command="RTE {value}", doc="Output to which the input leads.",
    )  # fmt: skip

    def connect(self, route: int) -> int:
        """Lead the input to an output and return which it then is; a method that no other kind of unit has."""
        return int(self.configure({"route": route})["route"])


class EmulatedAcmeSw4(TableUnit):
    """The SW4: it keeps its number."""

    identity = "Acme,SW4,0042,1.0"
    table: ClassVar[dict[str, Entry]] = {"RTE": Entry(1, 4, at_power_up=1)}
