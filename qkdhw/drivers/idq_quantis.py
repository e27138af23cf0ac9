"""Driver for the ID Quantique Quantis USB random number generator.

Source:
    ID Quantique Quantis library, QuantisUsb_Commands.h (requests) and the USB part of its Unix library (their form).
"""

from __future__ import annotations

import struct
import time
from typing import Any, ClassVar

from qkdhw.drivers.health_tests import BLOCK_BYTES, HealthTests
from qkdhw.drivers.instrument import ErrorStyle, Instrument
from qkdhw.drivers.setting import Setting, Value
from qkdhw.errors import (
    ConfigurationError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import UnitInfo, UnitStatus
from qkdhw.secret import SecretBuffer

USB_ID = (0x0ABA, 0x0102)
ENGLISH = 0x0409
VENDOR_IN, VENDOR_OUT, STANDARD_IN = 0xC1, 0x41, 0x80
GET_DESCRIPTOR, DEVICE, STRING = 6, 1, 3
BOARD_VERSION, MODULE_DISABLE, MODULE_ENABLE, MODULES_STATUS = 0x10, 0x11, 0x12, 0x13
MODULES_POWER, MODULES_MASK, MODULES_RATE, SELF_TEST_REQUESTED, CLEAR_SELF_TEST = 0x14, 0x15, 0x16, 0x17, 0x18

START_UP_BYTES = 1024  # SP 800-90B, 4.3: at least 1024 samples, whether bits or bytes
RESTART_S = 1.0  # after the module was switched on
LONGEST_READ_BYTES = 16 << 20

_REQUESTS = {
    "module_working": MODULES_STATUS, "module_powered": MODULES_POWER, "modules_mask": MODULES_MASK,
    "rate_kbit_per_s": MODULES_RATE, "self_test_requested": SELF_TEST_REQUESTED,
}  # fmt: skip


class IdqQuantis(Instrument):
    """A Quantis USB as an `interfaces.RandomSource`; a context manager.

    Every byte passes the health tests of SP 800-90B before it is handed out, and the module must say before and after
    that it works. A failure latches: no more output until `reset_health`.

    Args:
        transport: Open link, owned from now on.
        timeout_s: Longest wait for an answer.
        min_entropy_bits: Min-entropy that the source is claimed to have, bits a sample.
        sample_bits: What the health tests take for a sample: 1 (a bit) or 8 (a byte).
        false_alarm_exponent: Each test fails a source with just that min-entropy with probability 2^-this.
    """

    vendor: ClassVar[str] = "ID Quantique"
    model: ClassVar[str] = "Quantis USB"
    unit_kind: ClassVar[str] = "quantum random number generator"
    error_style: ClassVar[ErrorStyle] = ErrorStyle.STATUS_WORD
    capabilities: ClassVar[frozenset[str]] = frozenset({"RandomSource"})
    schemes: ClassVar[tuple[str, ...]] = ("usb",)
    usb_ids: ClassVar[tuple[str, ...]] = ("0aba:0102",)

    module_working = Setting(bool, access="r", doc="Whether the module is on and works.")
    module_powered = Setting(bool, access="r", doc="Whether the module has power.")
    modules_mask = Setting(int, access="r", minimum=0, maximum=1, doc="Which modules there are, a bit each.")
    rate_kbit_per_s = Setting(int, unit="kbit/s", access="r", doc="How fast a module makes bits.")
    self_test_requested = Setting(
        bool, access="r", doc="Whether the unit was switched on and waits for a start-up test.",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float = 2.0,
        min_entropy_bits: float = 0.8,
        sample_bits: int = 1,
        false_alarm_exponent: int = 40,
    ) -> None:
        self._health = HealthTests(
            min_entropy_bits=min_entropy_bits, sample_bits=sample_bits, false_alarm_exponent=false_alarm_exponent
        )
        self._alarms: dict[str, None] = {}
        self._started_on = 0  # the link's generation when the start-up test passed
        self._delivered_bytes = 0
        super().__init__(transport, timeout_s=timeout_s)

    def read_random(self, size_bytes: int, *, timeout_s: float = 5.0) -> SecretBuffer:
        """Return random bytes, the caller's own from then on.

        The first call, and the first after the unit was plugged in again, runs the start-up test on 1024 bytes that are
        thrown away, and so is what a whole packet of 512 bytes has too much.

        Args:
            size_bytes: 1 to 16777216.
            timeout_s: Longest wait; the unit makes about 500 bytes in a millisecond.

        Raises:
            UnitStateError: A health test has failed, or the module does not work; latches until `reset_health`.
            TransportTimeoutError: They did not come in time.
        """
        if not 1 <= size_bytes <= LONGEST_READ_BYTES:
            raise ConfigurationError(f"size_bytes is {size_bytes!r}", remedy="read 1 to 16777216 bytes at a time")
        deadline_s = time.monotonic() + timeout_s
        with self._exchange(timeout_s=timeout_s):
            self._require_no_alarm()
            self._check_module()
            if self._started_on != self._link.generation or self._ask_flag():
                self._start_up(deadline_s)
            with self._read_tested(size_bytes, deadline_s) as tested:
                self._check_module()
                self._delivered_bytes += size_bytes
                return tested.slice_copy(0, size_bytes)

    def reset_health(self) -> None:
        """Forget failures; a module that does not work is switched off and on. The start-up test follows.

        Raises:
            UnitStateError: The module still does not work.
        """
        with self._exchange():
            self._alarms.clear()
            self._health.restart()
            self._started_on = 0
            if not self._ask_byte(MODULES_STATUS):
                self._request(MODULE_DISABLE)
                self._request(MODULE_ENABLE)
                time.sleep(RESTART_S)
            self._check_module()

    def read_status(self) -> UnitStatus:
        """Read the module's state; alarms are names of failed health tests and `module_failed`.

        Counters: `delivered_bytes` since this object was made.
        """
        readings = {name: float(self.read_setting(name)) for name in _REQUESTS}
        alarms = tuple(self._alarms)
        return UnitStatus("fault" if alarms else "idle", {"delivered_bytes": self._delivered_bytes}, readings, alarms)

    def _synchronise(self) -> None:
        """Ask something: a control transfer is answered or fails, and what is in the pipe is random, old or new."""
        self._ask_number(BOARD_VERSION)

    def _identify(self) -> UnitInfo:
        descriptor = self._control_in(STANDARD_IN, GET_DESCRIPTOR, DEVICE << 8, 0, 18)
        if len(descriptor) != 18 or descriptor[:2] != b"\x12\x01":
            raise WireFormatError(f"{self._link.url} sent no device descriptor")
        vendor, product = struct.unpack_from("<HH", descriptor, 8)
        if (vendor, product) != USB_ID:
            raise UnitError(
                f"{self._link.url} is USB unit {vendor:04x}:{product:04x}, not a {self.model}",
                remedy="check the address and the driver name",
            )
        serial_number = self._read_text(descriptor[16]) if descriptor[16] else ""
        version = self._ask_number(BOARD_VERSION)
        return UnitInfo(self.vendor, self.model, serial_number, f"{version:#010x}", "Quantis USB")

    def _read_text(self, index: int) -> str:
        data = self._control_in(STANDARD_IN, GET_DESCRIPTOR, STRING << 8 | index, ENGLISH, 255)
        if len(data) < 2 or data[1] != STRING or data[0] != len(data) or len(data) % 2:
            raise WireFormatError(f"{self._link.url} sent no text for its serial number")
        text = data[2:].decode("utf-16-le", "replace")
        if not text.isprintable():
            raise WireFormatError(f"{self._link.url} sent a serial number that cannot be printed")
        return text

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Value:
        if setting.name == "rate_kbit_per_s":
            return self._ask_number(MODULES_RATE)
        if setting.name == "self_test_requested":
            return self._ask_flag()
        value = self._ask_byte(_REQUESTS[setting.name])
        return bool(value) if setting.kind is bool else value

    # --- requests --------------------------------------------------------------------------------------------
    def _control_in(self, request_type: int, request: int, value: int, index: int, size: int) -> bytes:
        return self._link.control_in(request_type, request, value, index, size, timeout_s=self._timeout_s)

    def _ask_number(self, request: int) -> int:
        data = self._control_in(VENDOR_IN, request, 0, 0, 4)
        if len(data) != 4:
            raise WireFormatError(f"request {request:#04x} was answered by {len(data)} bytes, not 4")
        return int.from_bytes(data, "little")

    def _ask_byte(self, request: int) -> int:
        """Ask something about the only module: the answer is 0 or 1."""
        data = self._control_in(VENDOR_IN, request, 0, 0, 1)
        if data not in {b"\0", b"\1"}:
            raise WireFormatError(f"request {request:#04x} was answered by {data.hex() or 'nothing'}, not by 0 or 1")
        return data[0]

    def _ask_flag(self) -> bool:
        """Say whether the unit asks for a start-up test; one that refuses the question has no such flag."""
        try:
            return bool(self._ask_byte(SELF_TEST_REQUESTED))
        except (TransportTimeoutError, TransportClosedError):
            raise
        except TransportError:
            return False

    def _request(self, request: int) -> None:
        self._link.control_out(VENDOR_OUT, request, 0, 0, b"", timeout_s=self._timeout_s)

    # --- random bytes ----------------------------------------------------------------------------------------
    def _require_no_alarm(self) -> None:
        if self._alarms:
            raise UnitStateError(
                f"no random bytes: {', '.join(self._alarms)}",
                remedy="look for the cause, then call reset_health(); replace a unit that fails again",
            )

    def _check_module(self) -> None:
        if not self._ask_byte(MODULES_STATUS) or not self._ask_byte(MODULES_POWER):
            self._alarms["module_failed"] = None
            self._require_no_alarm()

    def _start_up(self, deadline_s: float) -> None:
        """Test the first bytes and throw them away (SP 800-90B, 4.3)."""
        self._health.restart()
        self._read_tested(START_UP_BYTES, deadline_s).close()
        if self._ask_flag():
            self._request(CLEAR_SELF_TEST)
        self._started_on = self._link.generation

    def _read_tested(self, size_bytes: int, deadline_s: float) -> SecretBuffer:
        """Return whole packets with at least so many bytes that have passed the tests."""
        buffer = SecretBuffer(-(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES)
        try:
            with memoryview(buffer) as view:
                self._fill(view, deadline_s)
        except BaseException:
            buffer.close()
            raise
        return buffer

    def _fill(self, view: memoryview, deadline_s: float) -> None:
        """Fill memory with packets, each tested as it comes."""
        got = tested = 0
        while got < len(view):
            with view[got:] as rest:
                size = self._link.read_into(rest, timeout_s=max(0.0, deadline_s - time.monotonic()))
            if not size:
                raise TransportTimeoutError(
                    f"{self._link.url} sent {got} of {len(view)} random bytes in time", remedy="allow more time"
                )
            got += size
            whole = got - got % BLOCK_BYTES
            with view[tested:whole] as piece:
                if not self._health.passes(piece):
                    self._alarms[self._health.failure] = None
            tested = whole
            self._require_no_alarm()
