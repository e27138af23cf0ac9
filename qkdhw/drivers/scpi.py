"""Instruments that speak SCPI: IEEE 488.2 common commands and an error queue.

Source:
    SCPI-1999 volume 1 (4.1 IEEE mandated commands), volume 2 chapter 21 (SYSTem:ERRor); IEEE 488.2-1992.
"""

from __future__ import annotations

import re
from typing import ClassVar

from qkdhw.drivers.instrument import ErrorStyle
from qkdhw.drivers.text_instrument import TextInstrument, shown
from qkdhw.errors import CommandRefusedError, WireFormatError

QUEUE_LIMIT = 32
_ERROR = re.compile(r'([+-]?[0-9]{1,5})(?:,"(.*)")?')


class ScpiInstrument(TextInstrument):
    """Base of SCPI drivers; each command that sets something is followed by a look into the error queue."""

    error_style: ClassVar[ErrorStyle] = ErrorStyle.SCPI_QUEUE
    schemes: ClassVar[tuple[str, ...]] = ("visa", "tcp", "serial")
    error_query: ClassVar[str] = "SYST:ERR?"

    def _synchronise(self) -> None:
        """As for text, and empty the error queue."""
        if self._link.generation > 1 or not self._link.fresh_when_reopened:
            super()._synchronise()
        self._write_line("*CLS")

    def _tell(self, command: str) -> None:
        """Send a command and look into the error queue.

        Raises:
            CommandRefusedError: The queue holds an error; it is empty afterwards.
        """
        self._write_line(command)
        first = self._read_error()
        if first is None:
            return
        for _ in range(QUEUE_LIMIT):
            if self._read_error() is None:
                break
        code, text = first
        raise CommandRefusedError(
            f"{self.model} refused {command!r}: {code}, {text}",
            command=command,
            code=code,
            remedy="check the value and the unit's state",
        )

    def _read_error(self) -> tuple[str, str] | None:
        answer = self._ask(self.error_query)
        match = _ERROR.fullmatch(answer)
        if not match:
            raise WireFormatError(f"{self.error_query} was answered by {shown(answer)}, not by a number and a text")
        return None if int(match[1]) == 0 else (match[1], match[2] or "")
