"""What a format's name may say beside the name: `idq:channel=3`, `qcrypto-t2:protocol=1:time_order=19`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from qkdhw.errors import ConfigurationError

_LONGEST_NUMBER = 40
_LONGEST_CHANNEL = 10  # -999999999, which 32 bits hold
MAX_CHANNELS = 127


@dataclass(frozen=True, slots=True)
class FormatOption:
    """One thing that a file of a format does not say itself, or that its writer may choose.

    Attributes:
        name: As in the name of the format, and as the argument of the functions that read and write.
        help: What it is and what holds without it, in a few words.
        read: Makes its value of text; raises ValueError.
        reading: It is for reading.
        writing: It is for writing.
    """

    name: str
    help: str
    read: Callable[[str], Any]
    reading: bool = True
    writing: bool = False


def split_format_name(text: str) -> tuple[str, dict[str, str]]:
    """Return a format's own name, and what stands after it by name.

    Raises:
        ConfigurationError: It is not NAME:OPTION=VALUE:OPTION=VALUE, or says an option twice.
    """
    name, *rest = text.split(":")
    given: dict[str, str] = {}
    for part in rest:
        option, equals, value = part.partition("=")
        if not equals or not value or option in given:
            raise ConfigurationError(
                f"the format {text!r}: {part!r} is not OPTION=VALUE, or is given twice",
                remedy="write it as in idq:channel=3:record_period_ps=2000000000",
            )
        given[option] = value
    return name, given


def option_values(
    name: str, options: Sequence[FormatOption], given: Mapping[str, str], *, writing: bool
) -> dict[str, Any]:
    """Return the values of what is given.

    Args:
        name: Of the format, for messages.
        options: Those that the format has.
        given: Text by name.
        writing: Whether a file is to be written, not read.

    Raises:
        ConfigurationError: There is no such option, or not for this direction, or its value is impossible.
    """
    fitting = {option.name: option for option in options if (option.writing if writing else option.reading)}
    values = {}
    for key, text in given.items():
        if key not in fitting:
            verb = "written" if writing else "read"
            raise ConfigurationError(
                f"{name} files are {verb} without an option {key!r}",
                remedy=f"options then: {', '.join(fitting)}" if fitting else f"name the format {name} alone",
            )
        try:
            values[key] = fitting[key].read(text)
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigurationError(
                f"{name}:{key}={text} has an impossible value: {error}", remedy=f"{key} is: {fitting[key].help}"
            ) from error
    return values


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number within limits."""

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER else -1
        if not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most} is needed")
        return value

    return read


def positive_fraction(text: str) -> Fraction:
    """Read an exact positive number: 81, 80.955 or 125/32."""
    value = Fraction(text if len(text) <= _LONGEST_NUMBER and "e" not in text.lower() else "")
    if value <= 0:
        raise ValueError("a number above 0 is needed")
    return value


def yes_or_no(text: str) -> bool:
    """Read `yes` or `no`."""
    if text not in ("yes", "no"):
        raise ValueError("yes or no is needed")
    return text == "yes"


def channel_numbers(text: str) -> tuple[int, ...]:
    """Read an instrument's channel numbers, such as 101,102,-201."""
    words = text.split(",")
    if not all(
        word.removeprefix("-").isdecimal() and word.isascii() and len(word) <= _LONGEST_CHANNEL for word in words
    ):
        raise ValueError("whole numbers with commas between them are needed")
    numbers = tuple(map(int, words))
    if 0 in numbers or len(set(numbers)) < len(numbers) or len(numbers) > MAX_CHANNELS:
        raise ValueError(f"{MAX_CHANNELS} different numbers other than 0 at most are needed")
    return numbers


def _one_of(*numbers: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if text not in map(str, numbers):
            raise ValueError(f"one of {', '.join(map(str, numbers))} is needed")
        return int(text)

    return read


def _epoch_offset(text: str) -> int:
    value = whole_number(0, (1 << 32) - 1)(text)
    if value % (1 << 17):
        raise ValueError("a multiple of 131072 is needed")
    return value


def _writing(name: str, read: Callable[[str], Any], what: str) -> FormatOption:
    return FormatOption(name, what, read, reading=False, writing=True)


_PERIOD_PS = whole_number(1, 1 << 60)
_EPOCHS = (
    _writing("epoch_offset", _epoch_offset, "added to the number of an epoch, a multiple of 2^17; none"),
    _writing("as_chopper", yes_or_no, "yes to write as the chopper program does; no"),
)
OPTIONS: Mapping[str, tuple[FormatOption, ...]] = {
    "idq": (
        FormatOption("channel", "the channel of all its events, 1 to 255; 1", whole_number(1, 255)),
        FormatOption("record_period_ps", "from one sub-acquisition to the next; there is one only", _PERIOD_PS),
        FormatOption(
            "reference_period_ps", "period of the reference whose number follows each time; no numbers", _PERIOD_PS,
            writing=True,
        ),
    ),
    "qcrypto-t1": _EPOCHS,
    "qcrypto-t2": (
        *_EPOCHS,
        _writing("protocol", _one_of(0, 1, 6), "0 service (patterns of inputs), 1 BB84, 6 BBM92; 0"),
        _writing("time_order", whole_number(4, 27), "bits of a short time difference, 4 to 27; 17"),
    ),
    "qutag-compressed": (
        FormatOption("tick_ps", "a tick of the instrument in picoseconds, such as 81 or 80.955; 1", positive_fraction),
    ),
    "swabian-dump": (
        FormatOption(
            "channels", "the instrument's numbers of channels 1, 2, ..., such as 101,102,-201; k is k, -k is 128 + k",
            channel_numbers, writing=True,
        ),
    ),
}  # fmt: skip
