"""A Single Quantum WebSQ: superconducting nanowire detectors and their electronics, with control and counts ports."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.faults import Fault, FaultSwitches, spoil_reply
from qkdhw_emulators.optics.bench_clicks import ClickHistory
from qkdhw_emulators.world import World

END = b"\x17"
COUNTS_ABOVE_CONTROL = 345
INPUT_LIMIT_BYTES = 65536
EPOCH_S = 1_700_000_000.0  # unix time of the bench's zero
BACKLOG_LINES = 1000
HISTORY = 200

MIN_PERIOD_MS, MAX_CURRENT_UA, MAX_TRIGGER_MV = 10, 90.9, 1000.0
CURRENT_STEP_UA, TRIGGER_STEP_MV = 2 * MAX_CURRENT_UA / 4096, 2 * MAX_TRIGGER_MV / 4096

CRITICAL_K = 9.0
SWITCHING_UA = 28.0  # near absolute zero
RETRAPPING = 0.2
LINE_OHM, HOTSPOT_OHM, NORMAL_OHM, COMPLIANCE_MV = 50.0, 50e3, 1e6, 3000.0
EFFICIENCY, EFFICIENCY_AT, EFFICIENCY_WIDTH = 0.9, 0.7, 0.04
DARK_HZ_AT_90_PERCENT, DARK_GROWTH, MAX_DARK_HZ = 100.0, 0.03, 1e6
DEAD_TIME_S = 30e-9
PULSE_MV_PER_UA, NOISE_MV, NOISE_HZ = 10.0, 8.0, 5e6


class EmulatedSingleQuantumWebSq:
    """Answers the control port's JSON; the counts port is `further_ports["counts"]`.

    A detector counts light times an efficiency that saturates with the bias, and dark counts that grow steeply with it.
    Above its switching current, which falls with temperature, it latches: no counts and a high voltage until the bias
    goes far down. A trigger level in the noise counts noise, one above the pulses counts nothing.

    Args:
        world: Surroundings.
        faults: Faults that are on.
        n_detectors: How many.

    Attributes:
        clicks: On a bench with light: the click rates through time, in place of those from the condition.

    Source:
        Single Quantum's WebSQControl.py (MIT licence, 2020).
    """

    conditions: ClassVar[dict[str, float]] = {"light_rate_hz": 1e5, "temperature_k": 2.5}
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.STUCK_VALUE}
    )

    dead_time_s: ClassVar[float] = DEAD_TIME_S

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = (), n_detectors: int = 4) -> None:
        self.world = world or World()
        self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self.n_detectors = n_detectors
        self._rng = self.world.rng("unit")
        self._switching_ua = SWITCHING_UA * (1 + 0.05 * self.world.rng("detectors").standard_normal(n_detectors))
        self._input = bytearray()
        self.clicks: ClickHistory | None = None
        self.further_ports = {"counts": (EmulatedCounts(self), COUNTS_ABOVE_CONTROL)}
        self.power_cycle()

    def power_cycle(self) -> None:
        """Go back to the state of power-up: detectors off."""
        self._input.clear()
        self.period_ms = 100
        self.enabled = False
        self.bias_ua: NDArray[np.float64] = np.zeros(self.n_detectors)
        self.trigger_mv: NDArray[np.float64] = np.full(self.n_detectors, 100 * TRIGGER_STEP_MV)
        self._latched = np.zeros(self.n_detectors, dtype=bool)

    def receive(self, data: bytes) -> bytes:
        """Take bytes of JSON in any split and return the answers to the objects that are complete."""
        replies = []
        for byte in data:
            self._input.append(byte)
            if byte == ord("}") and (request := _whole_object(self._input)) is not None:
                self._input.clear()
                replies.append(spoil_reply(self._answer(request), self.faults, self._rng))
            elif len(self._input) > INPUT_LIMIT_BYTES:
                self._input.clear()
                replies.append(spoil_reply(self.nak(), self.faults, self._rng))
        return b"".join(replies)

    def reset_input(self) -> None:
        """Forget a half-received request: the client has gone."""
        self._input.clear()

    def nak(self) -> bytes:
        """Return what is said about a request that is not understood."""
        return _message("ErrorMessage", "Unknown command")

    # --- physics -----------------------------------------------------------------------------------------------
    def switching_ua(self) -> NDArray[np.float64]:
        """Return each detector's switching current at the present temperature; 0 if it does not superconduct."""
        warm = min(self.world.conditions["temperature_k"] / CRITICAL_K, 1.0)
        cold: float = (1 - warm**2) ** 1.5
        return self._switching_ua * cold

    def latched(self) -> NDArray[np.bool_]:
        """Return which detectors are normal-conducting and stay so."""
        bias, switching = self._current(), self.switching_ua()
        self._latched = (bias > switching) | (self._latched & (bias > RETRAPPING * switching))
        return self._latched

    def bias_voltage_mv(self) -> NDArray[np.float64]:
        """Return the voltage over each detector."""
        ohm = np.where(self.latched(), HOTSPOT_OHM if self.switching_ua().any() else NORMAL_OHM, LINE_OHM)
        voltage_mv = (self.bias_ua if self.enabled else 0.0 * self.bias_ua) * ohm * 1e-3
        return np.clip(voltage_mv, -COMPLIANCE_MV, COMPLIANCE_MV)

    def rates_hz(self, light_hz: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the mean count rate of each detector for so many photons a second; left out, as the condition says."""
        if light_hz is None:
            light_hz = np.full(self.n_detectors, self.world.conditions["light_rate_hz"])
        latched, bias = self.latched(), self._current()
        relative = np.divide(bias, self.switching_ua(), out=np.zeros_like(bias), where=self.switching_ua() > 0)
        efficiency = EFFICIENCY / (1 + np.exp(-(relative - EFFICIENCY_AT) / EFFICIENCY_WIDTH))
        dark_hz = np.minimum(DARK_HZ_AT_90_PERCENT * np.exp((relative - 0.9) / DARK_GROWTH), MAX_DARK_HZ)
        rate_hz = light_hz * efficiency + dark_hz
        rate_hz /= 1 + rate_hz * DEAD_TIME_S
        rate_hz[latched | (bias == 0) | (np.abs(self.trigger_mv) > PULSE_MV_PER_UA * bias)] = 0.0
        rate_hz[np.abs(self.trigger_mv) < NOISE_MV] += NOISE_HZ
        return rate_hz

    def mean_counts(self, begin_s: float, end_s: float) -> NDArray[np.float64]:
        """Return the mean counts of each detector in a time that is over."""
        if self.clicks is not None:
            return self.clicks.mean_counts(begin_s, end_s)
        return self.rates_hz() * (end_s - begin_s)

    def _current(self) -> NDArray[np.float64]:
        return np.abs(self.bias_ua) if self.enabled else np.zeros(self.n_detectors)

    # --- control -----------------------------------------------------------------------------------------------
    def _answer(self, request: dict[str, Any]) -> bytes:
        if Fault.WRONG_IDENTITY in self.faults:
            return _message("Greeting", "Hello")
        asked, command = request.get("request"), request.get("command")
        tellers: dict[str, Callable[[], bytes]] = {
            "labelProps": self._all_labels,
            "BiasVoltage": lambda: _message("BiasVoltage", self.bias_voltage_mv().round(3).tolist()),
            "TemperatureHistory": lambda: _message("temperature_long_memory", self._temperatures()),
        }
        if asked in tellers:
            return tellers[asked]()
        setters = {
            "SetMeasurementPeriod": self._set_period, "SetAllBiasCurrents": self._set_currents,
            "SetAllTriggerLevels": self._set_triggers, "DetectorEnable": self._set_enabled,
        }  # fmt: skip
        if command not in setters:
            return self.nak()
        try:
            return setters[command](request.get("value"))
        except (ValueError, TypeError):
            return _message("ErrorMessage", f"{command}: value out of range")

    def _all_labels(self) -> bytes:
        """Return every label with bounds and unit; the first two are run together, as the real box does at times."""
        current = {"bounds": [-MAX_CURRENT_UA, MAX_CURRENT_UA], "units": "uA"}
        trigger = {"bounds": [-MAX_TRIGGER_MV, MAX_TRIGGER_MV], "units": "mV"}
        messages = [
            _message("NumberOfDetectors", {"value": self.n_detectors}),
            _message("InptMeasurementPeriod", {"value": self.period_ms, "bounds": [MIN_PERIOD_MS], "units": "ms"}),
            _message("BiasCurrent", {"value": self._currents(), **current}),
            _message("TriggerLevel", {"value": self._triggers(), **trigger}),
            _message("BiasVoltage", {"value": self.bias_voltage_mv().round(3).tolist(), "units": "mV"}),
            _message("IVScanEnable", {"value": False}),
            _message("DetectorEnable", {"value": self.enabled}),
        ]
        return messages[0].removesuffix(END) + b"".join(messages[1:])

    def _currents(self) -> list[float]:
        return [float(value) for value in self.bias_ua.round(4)]

    def _triggers(self) -> list[float]:
        return [float(value) for value in self.trigger_mv.round(4)]

    def _set_period(self, value: Any) -> bytes:
        if isinstance(value, bool) or int(value) < MIN_PERIOD_MS:
            raise ValueError(value)
        if Fault.STUCK_VALUE not in self.faults:
            self.period_ms = int(value)
        return _message("InptMeasurementPeriod", self.period_ms)

    def _set_currents(self, value: Any) -> bytes:
        currents = self._quantised(value, MAX_CURRENT_UA, CURRENT_STEP_UA)
        if Fault.STUCK_VALUE not in self.faults:
            self.latched()
            self.bias_ua = currents
        return _message("BiasCurrent", self._currents())

    def _set_triggers(self, value: Any) -> bytes:
        levels = self._quantised(value, MAX_TRIGGER_MV, TRIGGER_STEP_MV)
        if Fault.STUCK_VALUE not in self.faults:
            self.trigger_mv = levels
        return _message("TriggerLevel", self._triggers())

    def _set_enabled(self, value: Any) -> bytes:
        if not isinstance(value, bool):
            raise TypeError(value)
        if Fault.STUCK_VALUE not in self.faults:
            self.enabled = value
        return _message("DetectorEnable", self.enabled)

    def _quantised(self, value: Any, limit: float, step: float) -> NDArray[np.float64]:
        values = np.asarray(value, dtype=float)
        if values.shape != (self.n_detectors,) or not (np.abs(values) <= limit).all():
            raise ValueError(value)
        rounded: NDArray[np.float64] = np.round(values / step) * step
        return rounded

    def _temperatures(self) -> dict[str, list[Any]]:
        now_s = math.floor(self.world.now_s())
        times_s = range(max(0, now_s - HISTORY + 1), now_s + 1)
        cold_k = round(self.world.conditions["temperature_k"], 3)
        n = len(times_s)
        return {
            "x": [datetime.fromtimestamp(EPOCH_S + t, UTC).strftime("%d-%b-%y %H:%M:%S.%f") for t in times_s],
            "T": [cold_k] * n,
            "T2": [40.0] * n,
            "V_avrg": [0.0] * n,
            "BoardTemp1": [303.0] * n,
            "BoardTemp2": [304.0] * n,
        }


class EmulatedCounts:
    """The counts port: a line for each measurement period to whoever is connected.

    Args:
        electronics: What it belongs to; the faults are the same.
    """

    def __init__(self, electronics: EmulatedSingleQuantumWebSq) -> None:
        self.faults = electronics.faults
        self._electronics = electronics
        self._world = electronics.world
        self._rng = self._world.rng("counts")
        self._next_s: float | None = None

    def opened(self) -> None:
        """Begin with the period that runs."""
        period_s = self._electronics.period_ms / 1000.0
        self._next_s = (math.floor(self._world.now_s() / period_s) + 1) * period_s

    def reset_input(self) -> None:
        """Nobody listens any more."""
        self._next_s = None

    def power_cycle(self) -> None:
        """The whole electronics lose power."""
        self._electronics.power_cycle()

    def receive(self, data: bytes) -> bytes:
        """Ignore what is sent to this port."""
        return b""

    def wait_s(self) -> float | None:
        """Bench seconds until the period ends, or None: nobody listens."""
        return None if self._next_s is None else max(0.0, self._next_s - self._world.now_s())

    def poll(self) -> bytes:
        """Return the lines of the periods that have ended."""
        lines: list[bytes] = []
        while self._next_s is not None and self._next_s <= self._world.now_s() and len(lines) < BACKLOG_LINES:
            period_s = self._electronics.period_ms / 1000.0
            counts = self._rng.poisson(self._electronics.mean_counts(self._next_s - period_s, self._next_s))
            line = f"{EPOCH_S + self._next_s:.3f}," + ",".join(map(str, counts)) + "\n"
            lines.append(spoil_reply(line.encode(), self.faults, self._rng))
            self._next_s += period_s
        return b"".join(lines)


def _message(label: str, value: Any) -> bytes:
    return json.dumps({"label": label, "value": value}).encode() + END


def _whole_object(text: bytearray) -> dict[str, Any] | None:
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None
