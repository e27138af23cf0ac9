"""Driver and emulator of the Acme MS1, a motorised stage.

Source: Acme MS1 Programming Manual rev. A, chapter 6 (fictional).
"""

import time
from typing import ClassVar

from qkdhw.drivers.setting import Reply, Setting
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw.errors import UnitStateError
from qkdhw_emulators.units.table_unit import Entry, TableUnit

POLL_S = 0.02


class AcmeMs1(TextInstrument):
    """The MS1 as an `interfaces.PositionerStage`, in millimetres; a context manager."""

    vendor = "Acme"
    model = "MS1"
    unit_kind = "stage"
    capabilities = frozenset({"PositionerStage"})
    idn_pattern = "^Acme,MS1,"
    done = "OK"
    refusal = "ERR"
    speed_percent = Setting(
        float, unit="%", minimum=1, maximum=100, step=1, reply=Reply.ACK,
        query="SPD?", command="SPD {value:.1f}", doc="Speed, 100 is 10 mm/s.",
    )  # fmt: skip
    target_mm = Setting(
        float, unit="mm", minimum=0, maximum=50, step=0.001, reply=Reply.ACK, restore=False,
        query="MOV?", command="MOV {value:.4f}", doc="Where it goes; nothing moves by itself after a reconnect.",
    )  # fmt: skip
    position_mm = Setting(float, unit="mm", access="r", query="POS?", doc="Where it is.")
    moving = Setting(bool, access="r", query="BSY?", doc="Whether it moves.")
    homed = Setting(bool, access="r", query="HOM?", doc="Whether it knows where it is.")

    def home(self, *, timeout_s: float = 60.0) -> None:
        """Find the zero of the scale and wait for it."""
        with self._exchange():
            self._tell("HOM")
        self._wait_for_rest(timeout_s)

    def move_to(self, position: float, *, timeout_s: float = 60.0) -> float:
        """Move, wait, and return where it then is, in mm.

        Raises:
            UnitStateError: It does not know where it is, or still moves at the deadline.
        """
        if not self.homed:
            raise UnitStateError(f"the {self.model} does not know where it is", remedy="call home()")
        self.configure({"target_mm": position})
        self._wait_for_rest(timeout_s)
        return self.position_mm

    def read_position(self) -> float:
        """Return where it is, in mm."""
        return self.position_mm

    def _wait_for_rest(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while self.moving:
            if time.monotonic() >= deadline_s:
                raise UnitStateError(f"the {self.model} still moves after {timeout_s} s", remedy="wait longer")
            time.sleep(POLL_S)


class EmulatedAcmeMs1(TableUnit):
    """The MS1 that moves by the bench's clock, and refuses to before it was homed."""

    identity = "Acme,MS1,0042,1.0"
    table: ClassVar[dict[str, Entry]] = {"SPD": Entry(1, 100, at_power_up=100), "MOV": Entry(0, 50, step=0.001)}

    def power_cycle(self) -> None:
        """Stand somewhere, without knowing where."""
        super().power_cycle()
        self.homed = False
        self._begun_s = float("-inf")
        self._start_mm = self.values["MOV"] = 1.5

    def carry_out(self, command: str, argument: str) -> bytes:
        """Move, and say where it is; anything else is in the table."""
        if command in {"MOV", "HOM", "SPD"}:
            return self._go(command, argument)
        if command == "BSY?" and self.world.clock.pace is None:  # a bench without waits: it is there at once
            self.world.clock.advance(self._left_s())
        told = {"POS?": f"{self._position_mm():.3f}", "BSY?": f"{self._left_s() > 0:d}", "HOM?": f"{self.homed:d}"}
        return f"{told[command]}\n".encode() if command in told else super().carry_out(command, argument)

    def _go(self, command: str, argument: str) -> bytes:
        if command == "MOV" and not self.homed:
            return self.nak()
        self._start_mm, self._begun_s = self._position_mm(), self.world.now_s()
        self.homed |= command == "HOM"
        return super().carry_out("MOV", "0") if command == "HOM" else super().carry_out(command, argument)

    def _left_s(self) -> float:
        way_s = abs(self.values["MOV"] - self._start_mm) / (self.values["SPD"] / 10)
        return max(0.0, self._begun_s + way_s - self.world.now_s())

    def _position_mm(self) -> float:
        way_mm = self._left_s() * self.values["SPD"] / 10
        return self.values["MOV"] + (way_mm if self._start_mm > self.values["MOV"] else -way_mm)
