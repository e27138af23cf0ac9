"""An ID Quantique Quantis USB random number generator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from qkdhw_emulators.faults import Fault, FaultSwitches
from qkdhw_emulators.servers.usb_descriptors import standard_reply
from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor, UsbNotReadyError, UsbStallError
from qkdhw_emulators.world import World

RATE_KBIT_PER_S = 4000
PACKET_BYTES = 512
FIFO_BYTES = 64 * PACKET_BYTES
VENDOR_IN, VENDOR_OUT = 0xC1, 0x41


class EmulatedIdqQuantis:
    """Makes 4 Mbit/s of random bits, in packets of 512 bytes, and answers about its one module.

    Args:
        world: Surroundings: time, randomness, physical conditions.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
        enabled: Whether the module is on.
        self_test_requested: Whether nobody has cleared the flag since power-up.

    Source:
        ID Quantique Quantis library, QuantisUsb_Commands.h and the USB part of its Unix library.
    """

    usb_descriptor: ClassVar[UsbDescriptor] = UsbDescriptor(
        0x0ABA, 0x0102, "id Quantique", "Quantis USB", "100003A410",
        endpoints=(Endpoint(0x86, max_packet=PACKET_BYTES),), interface_subclass=0, interface_protocol=0,
        bcd_device=0x0200,
    )  # fmt: skip
    conditions: ClassVar[dict[str, float]] = {
        "bias": 0.5, "stay": 0.5, "repeat_bytes": 0.0, "module_ok": 1.0, "powered": 1.0,
    }  # fmt: skip
    """`bias`: probability of a one. `stay`: probability that a bit is the one before it again (then `bias` has no say).
    `repeat_bytes`: the output repeats after so many bytes, 0 for never. `module_ok`, `powered`: 1 or 0."""
    unit_faults: ClassVar[frozenset[Fault]] = frozenset({Fault.STUCK_VALUE, Fault.WRONG_FIRMWARE, Fault.SILENT})
    """Stuck-value: all bits are 0. Silent: neither requests nor reads are answered."""

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self.world = world or World()
        self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self._rng = self.world.rng("noise")
        self.power_cycle()

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        self.enabled = True
        self.self_test_requested = True
        self._made_s = self.world.now_s()
        self._waiting_bytes = 0.0
        self._loop = b""

    def receive(self, data: bytes) -> bytes:
        """Do nothing: it has no pipe from the host."""
        return b""

    @property
    def working(self) -> bool:
        """Whether the module makes bits."""
        return self.enabled and bool(self.world.conditions["module_ok"]) and bool(self.world.conditions["powered"])

    def control_in(self, request_type: int, request: int, value: int, index: int, length: int) -> bytes:
        """Answer a request."""
        if Fault.SILENT in self.faults:
            raise UsbNotReadyError
        if request_type == 0x80:
            return standard_reply(self.usb_descriptor, request, value, 1, 0)[:length]
        version = 0x7FFF_FFFF if Fault.WRONG_FIRMWARE in self.faults else 0x0A0E_1234
        answers = {
            0x10: version.to_bytes(4, "little"),
            0x13: bytes([self.working]),
            0x14: bytes([bool(self.world.conditions["powered"])]),
            0x15: bytes([self.enabled]),
            0x16: RATE_KBIT_PER_S.to_bytes(4, "little"),
            0x17: bytes([self.self_test_requested]),
        }
        if request_type != VENDOR_IN or request not in answers:
            raise UsbStallError
        return answers[request][:length]

    def control_out(self, request_type: int, request: int, value: int, index: int, data: bytes) -> None:
        """Do a request."""
        if Fault.SILENT in self.faults:
            raise UsbNotReadyError
        if request_type != VENDOR_OUT or request not in {0x11, 0x12, 0x18}:
            raise UsbStallError
        if request == 0x18:
            self.self_test_requested = False
        else:
            self._produce()
            self.enabled = request == 0x12

    def read_stream(self, limit_bytes: int) -> bytes:
        """Return the whole packets that there are, one or as many as fit; b"" if there is none yet."""
        self._produce()
        ready = round(self._waiting_bytes, 6)  # a wait that was calculated may end a hair too early
        size = int(min(ready, max(limit_bytes, PACKET_BYTES))) // PACKET_BYTES * PACKET_BYTES
        if Fault.SILENT in self.faults or not size:
            return b""
        self._waiting_bytes = max(0.0, self._waiting_bytes - size)
        return self._noise(size)

    def poll(self) -> bytes:
        """Return b"": everything goes through the stream."""
        return b""

    def wait_s(self) -> float | None:
        """Seconds until a packet is full."""
        self._produce()
        missing = PACKET_BYTES - self._waiting_bytes
        return max(0.0, missing / (RATE_KBIT_PER_S * 125)) if self.working else None

    def _produce(self) -> None:
        """Let the module fill the buffer up to now."""
        now_s = self.world.now_s()
        made = (now_s - self._made_s) * RATE_KBIT_PER_S * 125 if self.working else 0.0
        self._waiting_bytes = min(FIFO_BYTES, self._waiting_bytes + made)
        self._made_s = now_s

    def _noise(self, size: int) -> bytes:
        period = int(self.world.conditions["repeat_bytes"])
        if Fault.STUCK_VALUE in self.faults:
            return bytes(size)
        if not period:
            self._loop = b""
            return self._fresh(size)
        if len(self._loop) != period:
            self._loop = self._fresh(period)
        out = (self._loop * (size // period + 2))[:size]
        self._loop = (self._loop * 2)[size % period :][:period]
        return out

    def _fresh(self, size: int) -> bytes:
        bias, stay = self.world.conditions["bias"], self.world.conditions["stay"]
        if stay != 0.5:
            changes = self._rng.random(8 * size) >= stay
            return np.packbits((np.cumsum(changes) + self._rng.integers(2)) % 2 == 1).tobytes()
        if bias != 0.5:
            return np.packbits(self._rng.random(8 * size) < bias).tobytes()
        return self._rng.bytes(size)
