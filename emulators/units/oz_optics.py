"""An OZ Optics EPC-400 polarisation controller and a DD-100 motor-driven attenuator."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import ClassVar

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.busy_unit import BusyUnit
from qkdhw_emulators.units.text_unit import TextUnit
from qkdhw_emulators.world import World

DONE, ERROR = b"Done\r\n", b"Error!\r\n"
OTHER_IDENTITY = b"Unknown Command\r\n" + DONE
CHANNELS = range(4)
MAX_MV, MAX_HZ = 5000, 100
HALF_WAVE_MV, SQUEEZERS_RAD = 1600.0, (0.0, math.pi / 4, 0.0, math.pi / 4)
SWITCHES: dict[str, tuple[str, bool | str, str]] = {
    "MAC": ("scrambling", True, "Set To AC Mode"),
    "MDC": ("scrambling", False, "Set To DC Mode"),
    "ENVF1": ("dc_in_ac", True, "Enable DC Voltage Output at AC Mode"),
    "ENVF0": ("dc_in_ac", False, "Disable DC Voltage Output at AC Mode"),
    "WF1": ("waveform", "Sine", "Set AC Waveform at: Sine"),
    "WF2": ("waveform", "Triangle", "Set AC Waveform at: Triangle"),
}

INSERTION_LOSS_DB, MAX_ATTENUATION_DB = 1.2, 60.0
TRAVEL_STEPS = 8000
STEPS_PER_S = 4000.0
HOME_EXTRA_S = 1.0


class EmulatedOzEpc400(TextUnit):
    """Answers EPC-400 commands byte for byte; voltages are whole millivolts, frequencies whole hertz.

    Args:
        world: Surroundings.
        faults: Faults that are on.
        echo: Whether each command is sent back before its answer.

    Source:
        Replies as quoted in the tests of QuTech QMI's driver (tests/instruments/ozoptics/test_epc_driver.py).
    """

    line_ends: ClassVar[bytes] = b"\r\n"
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.STUCK_VALUE}
    )

    in_fibre: ClassVar[bool] = True

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = (), echo: bool = False) -> None:
        self.echo = echo
        self._saved: tuple[list[int], list[int], bool, str] = ([0] * 4, [7, 17, 37, 71], False, "Sine")
        super().__init__(world, faults=faults)

    def power_cycle(self) -> None:
        """Go back to what was saved last."""
        voltages, frequencies, self.scrambling, self.waveform = self._saved
        self.voltages_mv, self.frequencies_hz = list(voltages), list(frequencies)
        self.dc_in_ac = False
        self.scrambled = [True] * 4

    def nak(self) -> bytes:
        """Return the answer to what it does not understand."""
        return ERROR

    @property
    def output_mv(self) -> tuple[int | None, ...]:
        """Steady voltage of each squeezer in millivolts, None where it scrambles."""
        ac = [self.scrambling and (self.scrambled[n] or not self.dc_in_ac) for n in CHANNELS]
        return tuple(None if ac[n] else self.voltages_mv[n] for n in CHANNELS)

    @property
    def moving(self) -> bool:
        """Whether a squeezer scrambles."""
        return None in self.output_mv

    def retarders(self, at_s: float) -> list[tuple[float, float]]:
        """Return angle and retardance of each squeezer in radians."""
        waves = zip(self.output_mv, self.frequencies_hz, strict=True)
        voltages_mv = [MAX_MV * math.sin(2 * math.pi * hz * at_s) if mv is None else mv for mv, hz in waves]
        return [(angle, math.pi * mv / HALF_WAVE_MV) for angle, mv in zip(SQUEEZERS_RAD, voltages_mv, strict=True)]

    def answer(self, line: str) -> bytes:
        """Carry out one command."""
        command = line.strip().upper()
        if not command:
            return b""
        if Fault.WRONG_IDENTITY in self.faults:
            return OTHER_IDENTITY
        text = self._read(command) or self._set(command)
        reply = ERROR if text is None else text.encode() + b"\r\n" + DONE
        return (line.encode("latin-1") + b"\r\n" if self.echo else b"") + reply

    def _read(self, command: str) -> str | None:
        kinds = ",".join(f"CH{n + 1}-{'F' if self.scrambled[n] else 'V'}" for n in CHANNELS)
        answers = {
            "V?": "Voltage(mV): " + " ".join(f"CH{n + 1} {self.voltages_mv[n]:+05d}" for n in CHANNELS),
            "F?": "Frequency(Hz): " + "  ".join(f"CH{n + 1} {self.frequencies_hz[n]:03d}" for n in CHANNELS),
            "M?": f"Work Mode: AC({self.waveform})" if self.scrambling else "Work Mode: DC",
            "WF?": f"AC Waveform: {self.waveform}",
            "VF?": f"Hz<->Volt at AC Mode is {'enabled' if self.dc_in_ac else 'disabled'}: {kinds}",
        }
        return answers.get(command)

    def _set(self, command: str) -> str | None:
        """Change something and return what is said about it, None if it is not understood."""
        stuck = Fault.STUCK_VALUE in self.faults
        if match := re.fullmatch(r"([VF])([1-4]),([+-]?[0-9]{1,5})", command):
            return self._set_number(match[1], int(match[2]) - 1, int(match[3]))
        if match := re.fullmatch(r"V([HLZ])([1-4])", command):
            return self._set_number("V", int(match[2]) - 1, {"H": MAX_MV, "L": -MAX_MV, "Z": 0}[match[1]])
        if match := re.fullmatch(r"VF([1-4])", command):
            n = int(match[1]) - 1
            self.scrambled[n] ^= not stuck
            return f"Set CH{n + 1} output to: {'Hz' if self.scrambled[n] else 'Volt'} (if possible)"
        if command in SWITCHES:
            attribute, value, said = SWITCHES[command]
            if not stuck:
                setattr(self, attribute, value)
            return said
        if command == "SAVE":
            self._saved = (list(self.voltages_mv), list(self.frequencies_hz), self.scrambling, self.waveform)
            return "Write Setting to Flash memory"
        return None

    def _set_number(self, kind: str, n: int, value: int) -> str | None:
        low, high = (-MAX_MV, MAX_MV) if kind == "V" else (0, MAX_HZ)
        if not low <= value <= high:
            return None
        if Fault.STUCK_VALUE not in self.faults:
            (self.voltages_mv if kind == "V" else self.frequencies_hz)[n] = value
        return f"Set CH{n + 1} DC Voltage at: {value}mV" if kind == "V" else f"Set CH{n + 1} AC Frequency at: {value}Hz"


class EmulatedOzDd100(BusyUnit):
    """Answers DD-100 commands byte for byte when the motor has arrived; attenuation comes in steps of the motor.

    The filter is such that the steps are finest where the attenuation is small: decibels grow with the square of the
    position.

    Args:
        world: Surroundings.
        faults: Faults that are on.
        echo: Whether each command is sent back before its answer.

    Source:
        QuTech QMI's driver and its tests (ozoptics/dd100mc.py); pyLabLib (OZOptics/base.py).
    """

    line_ends: ClassVar[bytes] = b"\r\n"
    unit_faults: ClassVar[frozenset[Fault]] = EmulatedOzEpc400.unit_faults

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = (), echo: bool = False) -> None:
        self.echo = echo
        super().__init__(world, faults=faults)

    def power_cycle(self) -> None:
        """Lose what was to be done; the motor has found its home position again."""
        super().power_cycle()
        self.position_steps = 0

    def nak(self) -> bytes:
        """Return the answer to what it does not understand."""
        return ERROR + b"\r\n"

    @property
    def attenuation_db(self) -> float:
        """Attenuation where the motor stands."""
        span_db = MAX_ATTENUATION_DB - INSERTION_LOSS_DB
        return INSERTION_LOSS_DB + span_db * (self.position_steps / TRAVEL_STEPS) ** 2

    @property
    def transmittance(self) -> float:
        """Fraction of the light that passes."""
        return 10 ** (-self.attenuation_db / 10)

    def answer(self, line: str) -> bytes:
        """Carry out one command."""
        command = line.strip().upper()
        if not command:
            return b""
        if Fault.WRONG_IDENTITY in self.faults:
            return OTHER_IDENTITY
        echo = f"{line}\r\n" if self.echo else ""
        if command in {"H", "RST"}:
            self._move(0, HOME_EXTRA_S, echo)
            return b""
        if match := re.fullmatch(r"A([0-9]{1,3}(?:\.[0-9]{0,3})?)", command):
            wanted_db = float(match[1])
            if not INSERTION_LOSS_DB <= wanted_db <= MAX_ATTENUATION_DB:
                return echo.encode() + self.nak()
            span_db = MAX_ATTENUATION_DB - INSERTION_LOSS_DB
            steps = round(TRAVEL_STEPS * ((wanted_db - INSERTION_LOSS_DB) / span_db) ** 0.5)
            self._move(self.position_steps if Fault.STUCK_VALUE in self.faults else steps, 0.0, echo)
            return b""
        texts = {
            "D": f"DPos:{self.position_steps}\r\nATTEN:{self.attenuation_db:.2f}\r\n",
            "CD": f"IL:{INSERTION_LOSS_DB:.2f}\r\nMAX ATTEN:{MAX_ATTENUATION_DB:.2f}\r\n",
        }
        return echo.encode() + (_done(texts[command]) if command in texts else self.nak())

    def _move(self, steps: int, extra_s: float, echo: str) -> None:
        way = abs(steps - self.position_steps)

        def arrived() -> bytes:
            self.position_steps = steps
            return _done(f"{echo}Pos:{steps}\r\n")

        self.be_busy(extra_s + way / STEPS_PER_S, arrived)


def _done(text: str) -> bytes:
    return text.encode("latin-1") + DONE + b"\r\n"
