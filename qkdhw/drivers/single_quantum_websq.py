"""Driver for the Single Quantum WebSQ electronics of superconducting nanowire single-photon detectors (SNSPD).

Two TCP ports: control (12000, JSON objects without framing outward, ended by 0x17 inward, sometimes run together) and
counts (12345, a line for each measurement period). Anybody who reaches these ports controls the detectors: keep them in
an isolated network.

Source:
    Single Quantum's WebSQControl.py (MIT licence, 2020) as published in NQCP/NQCP-Phot-Git-Drivers.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

from qkdhw.drivers.instrument import ErrorStyle, Instrument
from qkdhw.drivers.setting import ChannelSetting, Reply, Setting
from qkdhw.drivers.text_instrument import number_of, shown, text_of, whole_number_of
from qkdhw.errors import CommandRefusedError, TransportClosedError, TransportTimeoutError, WireFormatError
from qkdhw.interfaces import Transport
from qkdhw.model import UnitInfo, UnitStatus
from qkdhw.transport import open_transport
from qkdhw.transport.byte_link import ByteLink

END = b"\x17"
MESSAGE_LIMIT_BYTES = 16 << 20  # histories are long
COUNTS_LINE_LIMIT_BYTES = 4096
COUNTS_ABOVE_CONTROL = 345  # ports 12000 and 12345
MAX_DETECTORS = 64
MAX_CURRENT_UA = 90.9
ALARM_LIMIT = 16
LARGEST = 1e15
LABELS = ("NumberOfDetectors", "InptMeasurementPeriod", "BiasCurrent", "TriggerLevel", "DetectorEnable")
TEMPERATURES = "temperature_long_memory"


class SingleQuantumWebSq(Instrument):
    """A WebSQ as an `interfaces.PhotonDetector` and `interfaces.Counter`; detectors are numbered from 1.

    A label that contains "Error" is an alarm: it stays in `read_status().alarms` until `clear_alarms`.

    Args:
        transport: Open link to the control port, owned from now on.
        timeout_s: Longest wait for an answer.
        counts_url: Address of the counts port, opened when counts are first read; left out, the control port's number
            plus 345, as 12000 and 12345.
    """

    vendor: ClassVar[str] = "Single Quantum"
    model: ClassVar[str] = "WebSQ"
    unit_kind: ClassVar[str] = "photon detector"
    capabilities: ClassVar[frozenset[str]] = frozenset({"PhotonDetector", "Counter"})
    error_style: ClassVar[ErrorStyle] = ErrorStyle.FRAME
    schemes: ClassVar[tuple[str, ...]] = ("tcp",)
    channels_vary: ClassVar[bool] = True

    measurement_period_ms = Setting(
        int, unit="ms", minimum=10, maximum=60_000, query="InptMeasurementPeriod", command="SetMeasurementPeriod",
        reply=Reply.FRAME, doc="Time over which the counts of a line are counted.",
    )  # fmt: skip
    bias_current_ua = ChannelSetting(
        float, unit="uA", minimum=-MAX_CURRENT_UA, maximum=MAX_CURRENT_UA, step=0.05, channels=(1, 2, 3, 4),
        query="BiasCurrent", command="SetAllBiasCurrents", reply=Reply.FRAME,
        doc="Bias current of a detector; above its switching current it latches and counts nothing.",
    )  # fmt: skip
    trigger_level_mv = ChannelSetting(
        float, unit="mV", minimum=-1000.0, maximum=1000.0, step=0.5, channels=(1, 2, 3, 4), query="TriggerLevel",
        command="SetAllTriggerLevels", reply=Reply.FRAME, doc="Voltage above which a detector's pulse is counted.",
    )  # fmt: skip
    detectors_enabled = Setting(
        bool, query="DetectorEnable", command="DetectorEnable", reply=Reply.FRAME, restore=False,
        doc="Whether the detectors are biased.",
    )  # fmt: skip
    bias_voltage_mv = ChannelSetting(
        float, unit="mV", access="r", channels=(1, 2, 3, 4), query="BiasVoltage",
        doc="Voltage over a detector: a few millivolts while superconducting, much more when latched or warm.",
    )  # fmt: skip
    temperature_k = Setting(float, unit="K", access="r", query="TemperatureHistory", doc="Newest of the cold stage.")

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0, counts_url: str | None = None) -> None:
        self._labels: dict[str, Any] = {}
        self._alarms: list[str] = []
        self._n_errors = 0
        self._counts_url = counts_url
        self._counts: ByteLink | None = None
        super().__init__(transport, timeout_s=timeout_s)
        channels = tuple(range(1, int(self._labels["NumberOfDetectors"]) + 1))
        self._settings = {
            name: _with_channels(s, channels) if isinstance(s, ChannelSetting) else s
            for name, s in self._settings.items()
        }

    # --- contracts ---------------------------------------------------------------------------------------------
    def read_counts(self) -> tuple[int, ...]:
        """Return each detector's counts over one whole measurement period that began after the call."""
        return self._read_counts(None)

    def read_count_rates_hz(self, *, timeout_s: float = 5.0) -> tuple[float, ...]:
        """Return each detector's count rate over one whole measurement period that began after the call.

        Args:
            timeout_s: Longest wait; at least two measurement periods.
        """
        period_s = self.measurement_period_ms / 1000.0
        return tuple(count / period_s for count in self._read_counts(timeout_s))

    def enable_detectors(self) -> None:
        """Bias the detectors with the currents that are set."""
        self.configure({"detectors_enabled": True})

    def disable_detectors(self) -> None:
        """Take the bias away."""
        self.configure({"detectors_enabled": False})

    def read_status(self) -> UnitStatus:
        """Read bias voltages, temperature and the latched alarms; "running" is biased."""
        monitors = super().read_status().monitors
        state = "running" if self.detectors_enabled else "idle"
        return UnitStatus(state=state, monitors=monitors, alarms=tuple(self._alarms))

    def clear_alarms(self) -> None:
        """Forget the alarms that came so far."""
        with self._exchange():
            self._alarms.clear()

    def close(self) -> None:
        """Close both ports; closing twice is allowed. The detectors stay as they are."""
        if self._counts is not None:
            self._counts.close()
        super().close()

    # --- control -----------------------------------------------------------------------------------------------
    def _synchronise(self) -> None:
        """Learn all labels on a link that was just opened: no earlier answer is on it."""
        self._link.discard_input()
        self._refresh()

    def _identify(self) -> UnitInfo:
        self._refresh()
        number = self._labels["NumberOfDetectors"]
        return UnitInfo(self.vendor, self.model, "", protocol=f"{number} detectors")

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        if setting.query in LABELS:
            self._refresh()
            value = self._labels[setting.query]
        else:
            self._skip_arrived()
            self._send({"request": setting.query})
            label = TEMPERATURES if setting.query == "TemperatureHistory" else setting.query
            value = self._until(lambda seen: label in seen, f"no {label}")[label]
        if setting.name == "temperature_k":
            history = value.get("T") if isinstance(value, dict) else None
            return _numbers(label, history, None)[-1]
        if channel is None:
            return value
        return _numbers(setting.query, value, len(self.channels_of(setting.name)))[channel - 1]

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        """Send a setting and wait until the unit tells everybody the label's value: that is all the answer there is."""
        if channel is not None:
            self._refresh()  # currents or levels of all detectors are set together, and others may have changed them
            values = self._labels[setting.query]
            value = [*values[: channel - 1], value, *values[channel:]]
        self._skip_arrived()
        n_errors = self._n_errors
        self._send({"command": setting.command, "label": setting.query, "value": value})
        self._until(lambda seen: setting.query in seen or self._n_errors > n_errors, f"no {setting.query}")
        if self._n_errors > n_errors:
            raise CommandRefusedError(
                f"the WebSQ answered {setting.command} with {self._alarms[-1]}",
                command=setting.command,
                remedy="check the value and the unit's state",
            )

    def _refresh(self) -> None:
        """Ask for all labels and wait until those that this driver uses have come."""
        self._skip_arrived()
        self._send({"request": "labelProps", "value": "None"})
        self._until(lambda seen: seen.keys() >= set(LABELS), "not all labels of a WebSQ")
        self._labels = _checked_labels(self._labels)

    def _send(self, message: dict[str, Any]) -> None:
        self._link.write(json.dumps(message).encode(), timeout_s=self._timeout_s)

    def _skip_arrived(self) -> None:
        """Take in what the unit told everybody meanwhile, so that it is not taken for the next answer."""
        deadline_s = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline_s and (head := self._link.read_available(1, timeout_s=0.0)):
            rest = self._link.read_until(END, limit=MESSAGE_LIMIT_BYTES, timeout_s=self._timeout_s)
            if head != END:
                self._take_in(head + rest)

    def _until(self, enough: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Take in messages until there are enough labels, and return their values.

        Raises:
            TransportTimeoutError: Nothing came in time.
            WireFormatError: Something came, but not that.
        """
        deadline_s = time.monotonic() + self._timeout_s
        seen: dict[str, Any] = {}
        heard = False
        while not enough(seen):
            left_s = deadline_s - time.monotonic()
            try:
                message = self._link.read_until(END, limit=MESSAGE_LIMIT_BYTES, timeout_s=max(0.0, left_s))
            except TransportTimeoutError:
                if not heard:
                    raise
                left_s = 0.0
            if left_s <= 0.0:
                raise WireFormatError(
                    f"what is at {self._link.url} sent {what} within {self._timeout_s} s",
                    remedy="check the address and the driver name",
                )
            heard = True
            seen |= self._take_in(message)
        return seen

    def _take_in(self, message: bytes) -> dict[str, Any]:
        """Note the labels of a message, remember alarms, and return the labels' values."""
        told: dict[str, Any] = {}
        for item in _json_objects(message.removesuffix(END)):
            label = item.get("label")
            if not isinstance(label, str) or "value" not in item:
                continue
            value = item["value"]
            if isinstance(value, dict) and "value" in value:
                value = value["value"]
            told[label] = value
            if "Error" in label and value:
                self._latch(f"{label}: {shown(str(value))}")
        self._labels |= {label: value for label, value in told.items() if label in LABELS}
        return told

    def _latch(self, alarm: str) -> None:
        self._n_errors += 1
        if alarm in self._alarms:
            self._alarms.remove(alarm)
        self._alarms = [*self._alarms, alarm][-ALARM_LIMIT:]

    # --- counts ------------------------------------------------------------------------------------------------
    def _read_counts(self, timeout_s: float | None) -> tuple[int, ...]:
        with self._exchange():
            if self._counts is None:
                url = self._counts_url or counts_url_of(self._link.url)
                self._counts = open_transport(url, timeout_s=self._timeout_s)
        counts = self._counts
        wait_s = self._timeout_s + 2.1 * self.measurement_period_ms / 1000.0 if timeout_s is None else timeout_s
        with counts.exchange(lambda: None, timeout_s=wait_s):
            try:
                return self._count_afresh(counts, wait_s)
            except (WireFormatError, TransportClosedError):
                return self._count_afresh(counts, wait_s)

    def _count_afresh(self, counts: ByteLink, wait_s: float) -> tuple[int, ...]:
        """Connect anew, so that no old line waits, and return the first period that began since then."""
        deadline_s = time.monotonic() + wait_s
        counts.reconnect(timeout_s=wait_s)
        first_s = self._read_counts_line(counts, deadline_s)[0]
        while True:
            at_s, values = self._read_counts_line(counts, deadline_s)
            if at_s > first_s:
                return values

    def _read_counts_line(self, counts: ByteLink, deadline_s: float) -> tuple[float, tuple[int, ...]]:
        left_s = max(0.0, deadline_s - time.monotonic())
        line = text_of(counts.read_until(b"\n", limit=COUNTS_LINE_LIMIT_BYTES, timeout_s=left_s))
        n = len(self.channels_of("bias_current_ua"))
        fields = line.split(",")
        try:
            at_s, values = number_of(fields[0]), tuple(whole_number_of(field.strip()) for field in fields[1:])
        except ValueError:
            at_s, values = 0.0, ()
        if len(values) != n or min(values, default=0) < 0 or at_s <= 0:
            raise WireFormatError(
                f"a line of {len(line)} characters came for a time and {n} counts",
                remedy="check the address of the counts port",
            )
        return at_s, values


def counts_url_of(control_url: str) -> str:
    """Return where the counts port is, for the control port's address.

    For tcp:// it is the port number plus 345; other addresses are given the option port=counts.
    """
    parts = urlsplit(control_url)
    if parts.scheme == "tcp" and parts.port is not None:
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"tcp://{host}:{parts.port + COUNTS_ABOVE_CONTROL}"
    address, hash_sign, fragment = control_url.partition("#")
    return f"{address}{'&' if parts.query else '?'}port=counts{hash_sign}{fragment}"


def _with_channels(setting: ChannelSetting[Any], channels: tuple[int, ...]) -> ChannelSetting[Any]:
    own = copy.copy(setting)
    own.channels = channels
    return own


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _json_objects(message: bytes) -> list[dict[str, Any]]:
    """Return the objects of a message: one, or several run together.

    Raises:
        WireFormatError: It is not made of JSON objects.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    items = []
    try:
        rest = message.decode().strip()
        while rest:
            item, end = decoder.raw_decode(rest)
            items.append(item)
            rest = rest[end:].lstrip()
    except (ValueError, RecursionError):
        items = [None]
    if not all(isinstance(item, dict) for item in items):
        raise WireFormatError(
            f"a message of {len(message)} bytes is not made of JSON objects", remedy="check the address"
        )
    return items


def _checked_labels(labels: dict[str, Any]) -> dict[str, Any]:
    """Return the labels that this driver uses, in their kinds.

    Raises:
        WireFormatError: A value is none of that label.
    """
    number, period_ms, enabled = (labels[name] for name in ("NumberOfDetectors", "InptMeasurementPeriod", LABELS[-1]))
    (n,) = _numbers("NumberOfDetectors", [number], 1)
    if not n.is_integer() or not 1 <= n <= MAX_DETECTORS:
        raise WireFormatError(f"the WebSQ says that it has {n:g} detectors")
    if not isinstance(enabled, int | float) or enabled not in {0, 1}:
        raise WireFormatError(f"DetectorEnable is {shown(str(enabled))}, not true or false")
    return {
        "NumberOfDetectors": int(n),
        "InptMeasurementPeriod": round(_numbers("InptMeasurementPeriod", [period_ms], 1)[0]),
        "BiasCurrent": _numbers("BiasCurrent", labels["BiasCurrent"], int(n)),
        "TriggerLevel": _numbers("TriggerLevel", labels["TriggerLevel"], int(n)),
        "DetectorEnable": bool(enabled),
    }


def _numbers(label: str, values: Any, n: int | None) -> list[float]:
    """Return a label's numbers; WireFormatError unless there are `n`, or at least one if `n` is None."""
    fits = isinstance(values, list) and (len(values) == n if n is not None else len(values) > 0)
    if not fits or not all(isinstance(v, int | float) and abs(v) < LARGEST for v in values):
        raise WireFormatError(f"{label} is not {n or 'some'} numbers", remedy="check the driver name")
    return [float(value) for value in values]
