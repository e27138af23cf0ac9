"""Driver and emulator of the Acme LS4, a laser with an interlock.

Source: Acme LS4 Programming Manual rev. B, chapter 5 (fictional).
"""

import contextlib
from typing import ClassVar

from qkdhw.drivers.setting import Reply, Setting
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw.errors import CommandRefusedError, QkdhwError, UnitStateError
from qkdhw_emulators.units.table_unit import Entry, TableUnit


class AcmeLs4(TextInstrument):
    """The LS4 as an `interfaces.PhotonSource`; leaving it ends the light it began."""

    vendor = "Acme"
    model = "LS4"
    unit_kind = "laser source"
    capabilities = frozenset({"PhotonSource"})
    idn_pattern = "^Acme,LS4,"
    done = "OK"
    refusal = "ERR"
    power_mw = Setting(
        float, unit="mW", minimum=0, maximum=20, step=0.01, reply=Reply.ACK,
        query="POW?", command="POW {value:.3f}", doc="Optical power while the light is on.",
    )  # fmt: skip
    output_enabled = Setting(
        bool, reply=Reply.ACK, restore=False,
        query="OUT?", command="OUT {value:d}", doc="Whether light is on; after a reconnect as the unit has it.",
    )  # fmt: skip
    temperature_c = Setting(float, unit="°C", access="r", query="TMP?", doc="Temperature of the laser.")

    def enable_output(self) -> None:
        """Let light out.

        Raises:
            UnitStateError: The unit refuses, as its interlock is open.
        """
        try:
            self.configure({"output_enabled": True})
        except CommandRefusedError as error:
            raise UnitStateError(f"the {self.model} keeps its light off", remedy="close its interlock") from error

    def disable_output(self) -> None:
        """Switch the light off."""
        self.configure({"output_enabled": False})

    def read_output_enabled(self) -> bool:
        """Say whether light is on."""
        return self.output_enabled

    def close(self) -> None:
        """Switch off the light if it was switched on here, and close the transport."""
        if self._applied.get(("output_enabled", None)):
            with contextlib.suppress(QkdhwError):  # the link may be gone
                self.disable_output()
        super().close()


class EmulatedAcmeLs4(TableUnit):
    """The LS4 with its temperature and its interlock: while that is open, the light is off."""

    identity = "Acme,LS4,0042,1.0"
    table: ClassVar[dict[str, Entry]] = {"POW": Entry(0, 20, step=0.01, at_power_up=1.0), "OUT": Entry(0, 1)}
    conditions: ClassVar[dict[str, float]] = {"interlock_closed": 1.0, "temperature_c": 25.0}

    def carry_out(self, command: str, argument: str) -> bytes:
        """Keep the light off while the interlock is open; anything else is in the table."""
        if not self.world.conditions["interlock_closed"]:
            self.values["OUT"] = 0.0
            if (command, argument) == ("OUT", "1"):
                return self.nak()
        if command == "TMP?":
            return f"{self.world.conditions['temperature_c']:.1f}\n".encode()
        return super().carry_out(command, argument)
