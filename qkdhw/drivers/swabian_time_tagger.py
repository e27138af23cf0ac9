"""Driver for Swabian Instruments' Time Taggers (20, Ultra, X) through the vendor's own library.

Source:
    Swabian Instruments, Time Tagger documentation: API, "Time-tag streaming" (TimeTagStream, types of tags),
    "Hardware API" (trigger level, dead time, input delay).
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np

from qkdhw.drivers.library_tagger import Events, LibraryTagger, with_gap
from qkdhw.drivers.setting import ChannelSetting, Setting
from qkdhw.errors import TransportError, UnitError, UnitStateError, WireFormatError
from qkdhw.model import EventKind, UnitInfo

BUFFER_EVENTS = 10_000_000
INPUTS = tuple(range(1, 19))
# Tag types of the library, in their order: TimeTag, Error, OverflowBegin, OverflowEnd, MissedEvents.
KINDS = (EventKind.PHOTON, EventKind.CLOCK_ERROR, EventKind.GAP_BEGIN, EventKind.GAP_END, EventKind.MISSED)


class SwabianTimeTagger(LibraryTagger):
    """A Time Tagger as an `interfaces.TimeTagger`; a context manager. Times are picoseconds since its power-up."""

    vendor: ClassVar[str] = "Swabian Instruments"
    model: ClassVar[str] = "Time Tagger"
    module_names: ClassVar[tuple[str, ...]] = ("Swabian.TimeTagger", "TimeTagger")
    how_to_get: ClassVar[str] = (
        "pip install Swabian-TimeTagger, or the installer from swabianinstruments.com/time-tagger/downloads"
    )

    input_enabled = ChannelSetting(bool, channels=INPUTS, doc="Whether the input's events are streamed.")
    input_edge = ChannelSetting(
        str, choices=("rising", "falling"), channels=INPUTS, doc="Edge of the pulses that counts as their time.",
    )  # fmt: skip
    threshold_v = ChannelSetting(
        float, unit="V", minimum=-2.5, maximum=2.5, step=0.005, channels=INPUTS, doc="Trigger level.",
    )  # fmt: skip
    dead_time_ps = ChannelSetting(
        int, unit="ps", minimum=0, maximum=100_000_000, step=6000, relative_step=0.01, channels=INPUTS,
        doc="Dead time after an event, rounded to the unit's clock; never below the hardware's.",
    )  # fmt: skip
    input_delay_ps = ChannelSetting(
        int, unit="ps", minimum=-1_000_000, maximum=1_000_000, channels=INPUTS, doc="Added to the times of the input.",
    )  # fmt: skip

    def _open_device(self, serial_number: str) -> Any:
        try:
            device = self._module.createTimeTagger(serial_number)
        except (RuntimeError, ValueError, OSError) as error:
            which = f"with serial number {serial_number}" if serial_number else "at all"
            raise TransportError(
                f"no Time Tagger {which} could be opened: {error}",
                remedy="check cable and power, close Time Tagger Lab",
            ) from error
        self._channels = {int(channel) for channel in device.getChannelList()}
        inputs = tuple(sorted(channel for channel in self._channels if channel > 0))
        for name, setting in self._settings.items():
            self._settings[name] = copy.copy(setting)
            self._settings[name].channels = inputs
        self._enabled = dict.fromkeys(inputs, True)
        self._edge = dict.fromkeys(inputs, "rising")
        self._stream: Any = None
        return device

    def _close_device(self) -> None:
        self._stream = None
        self._module.freeTimeTagger(self._held())

    def _identify(self) -> UnitInfo:
        with self._library():
            device = self._held()
            return UnitInfo(
                self.vendor,
                str(device.getModel()),
                str(device.getSerial()),
                protocol=f"library {self._module.getVersion()}",
            )

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        device, number = self._held(), channel or 0
        if setting.name == "input_enabled":
            return self._enabled[number]
        if setting.name == "input_edge":
            return self._edge[number]
        with self._library():
            signed = self._signed(number)
            if setting.name == "threshold_v":
                return float(device.getTriggerLevel(signed))
            return int(
                {"dead_time_ps": device.getDeadtime, "input_delay_ps": device.getInputDelay}[setting.name](signed)
            )

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        device, number = self._held(), channel or 0
        if setting.name in {"input_enabled", "input_edge"}:
            if self._running:
                raise UnitStateError(f"{setting.name} is fixed while the stream runs", remedy="stop it first")
            if setting.name == "input_enabled":
                self._enabled[number] = value
            else:
                self._edge[number] = value
            return
        calls = {
            "threshold_v": device.setTriggerLevel,
            "dead_time_ps": device.setDeadtime,
            "input_delay_ps": device.setInputDelay,
        }
        with self._library():
            for signed in {number, -number} & self._channels:  # of both edges, so that input_edge may change later
                calls[setting.name](signed, value)

    def _begin(self) -> None:
        channels = [self._signed(number) for number, enabled in self._enabled.items() if enabled]
        if not channels:
            raise UnitStateError("no input is enabled", remedy="set input_enabled")
        self._full = False
        self._stream = self._module.TimeTagStream(self._held(), BUFFER_EVENTS, channels)
        self._held().sync()

    def _end(self) -> None:
        self._stream.stop()

    def _fetch(self) -> Events:
        buffer = self._stream.getData()
        ticks = np.array(buffer.getTimestamps(), np.int64)
        channel = np.abs(np.array(buffer.getChannels(), np.int64))
        tag_type = np.array(buffer.getEventTypes(), np.int64)
        missed = np.array(buffer.getMissedEvents(), np.int64)
        if len({len(ticks), len(channel), len(tag_type), len(missed)}) != 1:
            raise WireFormatError("the library of Swabian Instruments gave columns of different lengths")
        if len(ticks) and not 0 <= int(tag_type.min()) <= int(tag_type.max()) < len(KINDS):
            raise WireFormatError("the library of Swabian Instruments gave a tag of unknown type")
        kind = np.array(KINDS, np.int64)[tag_type]
        channel[kind != EventKind.PHOTON] = 0
        missed[kind != EventKind.MISSED] = 0
        if len(channel) and int(channel.max()) > 255:
            raise UnitError("the library of Swabian Instruments gave a virtual channel that was not asked for")
        events = (ticks, channel, kind, missed)
        overran, self._full = self._full, len(ticks) >= BUFFER_EVENTS
        return with_gap(events) if overran and len(ticks) else events

    def _signed(self, number: int) -> int:
        """Return the library's number of an input: negative for its falling edge."""
        return -number if self._edge[number] == "falling" else number
