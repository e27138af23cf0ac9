"""Driver for PicoQuant's time taggers (MultiHarp, HydraHarp, PicoHarp 330, TimeHarp 260) through snAPI, in T2 mode.

Source:
    PicoQuant snAPI documentation: snAPI.Main (getDevice, initDevice, Device, Unfold), "Configuration" (deviceConfig).
"""

from __future__ import annotations

import copy
import time
from typing import Any, ClassVar

import numpy as np

from qkdhw.drivers.library_tagger import Events, LibraryTagger, with_gap
from qkdhw.drivers.setting import ChannelSetting, Setting
from qkdhw.errors import CommandRefusedError, TransportError, UnitStateError, WireFormatError
from qkdhw.model import EventKind, UnitInfo

BUFFER_EVENTS = 1 << 22
MARKER = 0x80
SYNC = 0
INPUTS = tuple(range(65))  # 0 is the sync input
# setting: key of an input and of the sync input in deviceConfig
_KEYS = {
    "input_enabled": ("ChanEna", "SyncChannelEnable"),
    "input_edge": ("TrigEdge", "SyncTrigEdge"),
    "threshold_v": ("TrigLvl", "SyncTrigLvl"),
    "dead_time_ps": ("DeadTime", "SyncDeadTime"),
    "input_delay_ps": ("ChanOffs", "SyncChannelOffset"),
}


class PicoQuantHarp(LibraryTagger):
    """A Harp in T2 mode as an `interfaces.TimeTagger`; a context manager. Channel 0 is the sync input."""

    vendor: ClassVar[str] = "PicoQuant"
    model: ClassVar[str] = "Harp (T2)"
    module_names: ClassVar[tuple[str, ...]] = ("snAPI.Main",)
    how_to_get: ClassVar[str] = "pip install snAPI, see github.com/PicoQuant/snAPI for the drivers it needs"

    input_enabled = ChannelSetting(bool, channels=INPUTS, doc="Whether the input's events are streamed.")
    input_edge = ChannelSetting(
        str, choices=("falling", "rising"), channels=INPUTS, doc="Edge of the pulses that counts as their time.",
    )  # fmt: skip
    threshold_v = ChannelSetting(
        float, unit="V", minimum=-1.2, maximum=1.2, step=0.0025, channels=INPUTS, doc="Trigger level, in whole mV.",
    )  # fmt: skip
    dead_time_ps = ChannelSetting(
        int, unit="ps", minimum=0, maximum=160_000, step=800, channels=INPUTS,
        doc="Suppresses events after an event; 0 or the hardware's own is the shortest.",
    )  # fmt: skip
    input_delay_ps = ChannelSetting(
        int, unit="ps", minimum=-99_999, maximum=99_999, step=25, channels=INPUTS,
        doc="Added to the times of the input.",
    )  # fmt: skip

    def _open_device(self, serial_number: str) -> Any:
        device = self._module.snAPI()
        found = device.getDevice(serial_number) if serial_number else device.getDevice()
        if not found or not device.initDevice(self._module.MeasMode.T2):
            which = f"with serial number {serial_number}" if serial_number else "at all"
            raise TransportError(
                f"no PicoQuant unit {which} could be opened",
                remedy="check cable, power and driver; close other programs",
            )
        inputs = tuple(range(1 + int(device.deviceConfig["NumChans"])))
        for name, setting in self._settings.items():
            self._settings[name] = copy.copy(setting)
            self._settings[name].channels = inputs
        self._fetched_s = time.monotonic()
        return device

    def _close_device(self) -> None:
        self._held().closeDevice(False)

    def _identify(self) -> UnitInfo:
        with self._library():
            config = self._held().deviceConfig
            return UnitInfo(self.vendor, str(config["Model"]), str(config["ID"]), str(config["Version"]), "snAPI T2")

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        with self._library():
            self._held().getDeviceConfig()
            raw = self._raw(setting.name, channel or SYNC)
        if setting.name == "input_edge":
            return "rising" if raw else "falling"
        return raw / 1000 if setting.name == "threshold_v" else setting.kind(raw)

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        with self._library():
            number, name = channel or SYNC, setting.name
            level, edge = int(self._raw("threshold_v", number)), int(self._raw("input_edge", number))
            if name == "threshold_v":
                level = round(1000 * value)
            elif name == "input_edge":
                edge = int(value == "rising")
            accepted = self._call(
                name, number, (level, edge) if name in {"threshold_v", "input_edge"} else (int(value),)
            )
        if not accepted:
            raise CommandRefusedError(
                f"the unit refused {name} = {value!r} at input {number}",
                command=name,
                remedy="check the range in snAPI's documentation; units with CFD inputs have no trigger level",
            )

    def _call(self, name: str, number: int, values: tuple[int, ...]) -> bool:
        """Call the setter of the sync input or of another one; the library counts those from 0."""
        device = self._held().device
        sync, other = {
            "input_enabled": (device.setSyncChannelEnable, device.setInputChannelEnable),
            "input_edge": (device.setSyncEdgeTrig, device.setInputEdgeTrig),
            "threshold_v": (device.setSyncEdgeTrig, device.setInputEdgeTrig),
            "dead_time_ps": (device.setSyncDeadTime, device.setInputDeadTime),
            "input_delay_ps": (device.setSyncChannelOffset, device.setInputChannelOffset),
        }[name]
        return bool(sync(*values) if number == SYNC else other(number - 1, *values))

    def _raw(self, name: str, number: int) -> Any:
        """Return a value as the library keeps it."""
        config = self._held().deviceConfig
        of_input, of_sync = _KEYS[name]
        return config[of_sync] if number == SYNC else config["ChansCfg"][number - 1][of_input]

    def _begin(self) -> None:
        self._fetched_s = time.monotonic()
        if not self._held().unfold.startBlock(0, BUFFER_EVENTS, False):
            raise UnitStateError("the unit did not start a measurement", remedy="check that no other program uses it")

    def _end(self) -> None:
        self._held().unfold.stopMeasure()

    def _fetch(self) -> Events:
        """Take what the library has.

        If its buffer runs over it clears that and says so in its log alone. So a gap is marked when the count rates
        would have filled the buffer since the last time.
        """
        unfold = self._held().unfold
        finished = bool(unfold.isFinished())  # asked first: what is left then comes with this block
        elapsed_s = time.monotonic() - self._fetched_s
        self._fetched_s += elapsed_s
        times, channels = unfold.getBlock()
        ticks, code = np.array(times, np.int64), np.array(channels, np.int64)
        if len(ticks) != len(code) or (len(ticks) and int(ticks.min()) < 0):
            raise WireFormatError("snAPI gave times and channels that cannot be true")
        is_marker = (code & MARKER) != 0
        kind = np.where(is_marker, EventKind.MARKER, EventKind.PHOTON).astype(np.int64)
        events = (ticks, code & ~MARKER, kind, np.zeros(len(ticks), np.int64))
        if not len(ticks):
            if finished and self._running:
                self._running = False
                raise UnitStateError("the measurement ended by itself", remedy="check the unit, start the stream again")
            return events
        rate_hz = float(np.sum(self._held().getCountRates())) if self._running else 0.0
        overran = len(ticks) >= BUFFER_EVENTS or rate_hz * elapsed_s >= BUFFER_EVENTS
        return with_gap(events) if overran else events
