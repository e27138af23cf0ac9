"""Drivers for the Thorlabs MPC320 fibre polarisation controller and the K10CR1 rotation mount.

Source:
    Thorlabs Motion Controllers Host-Controller Communications Protocol, issue 37; MPC320 and K10CR1 user guides.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from qkdhw.drivers.apt_instrument import DISABLED, ENABLED, START_S, AptInstrument, Bits, Motion, Parameter, in_units
from qkdhw.drivers.apt_packets import Message
from qkdhw.drivers.setting import ChannelSetting, Setting, Value
from qkdhw.errors import ConfigurationError, UnitStateError
from qkdhw.model import UnitStatus

PADDLES = (1, 2, 3)
PADDLE_LONGEST_DEG = 170.0
PADDLE_COUNTS_PER_DEG = 1370 / 170.0
PADDLE_MOVE_S = 10.0  # 170 degrees at the lowest speed take 4.3 s
MOUNT_COUNTS_PER_DEG = 409_600 / 3
MOUNT_COUNTS_PER_DEG_PER_S = 7_329_109.0
MOUNT_COUNTS_PER_DEG_PER_S2 = 1_502.0
MOUNT_LONGEST_DEG = 43 * 360.0  # the counter overflows after 43.7 turns
TOLERANCE = 2  # counts
PROFILED, ABRUPT = 2, 1
POL = "<6H"


class ThorlabsMpc320(AptInstrument):
    """An MPC320 as an `interfaces.PolarizationController`; a context manager. Its measure is the paddle's angle."""

    model: ClassVar[str] = "MPC320"
    unit_kind: ClassVar[str] = "fibre polarisation controller with three paddles"
    capabilities: ClassVar[frozenset[str]] = frozenset({"PolarizationController"})
    parameters: ClassVar[dict[str, Parameter]] = {
        "velocity_percent": Parameter(Message.POL_REQ_PARAMS, POL, 1, 1.0),
        "home_position_deg": Parameter(Message.POL_REQ_PARAMS, POL, 2, PADDLE_COUNTS_PER_DEG),
        "jog_step_deg": Parameter(Message.POL_REQ_PARAMS, POL, 3, PADDLE_COUNTS_PER_DEG),
    }

    velocity_percent = Setting(
        int, unit="%", minimum=10, maximum=100, doc="Speed of all paddles, in parts of 400 degrees per second.",
    )  # fmt: skip
    home_position_deg = Setting(
        float, unit="°", minimum=0.0, maximum=PADDLE_LONGEST_DEG, step=1 / PADDLE_COUNTS_PER_DEG,
        doc="Where homing leads.",
    )  # fmt: skip
    jog_step_deg = ChannelSetting(
        float, unit="°", minimum=0.0, maximum=PADDLE_LONGEST_DEG, step=1 / PADDLE_COUNTS_PER_DEG, channels=PADDLES,
        doc="How far a jog goes.",
    )  # fmt: skip
    position_deg = ChannelSetting(
        float, unit="°", minimum=0.0, maximum=PADDLE_LONGEST_DEG, step=1 / PADDLE_COUNTS_PER_DEG, channels=PADDLES,
        affects=("enabled",), doc="Angle of a paddle; setting it switches its motor on, and waits until it is there.",
    )  # fmt: skip
    enabled = ChannelSetting(bool, channels=PADDLES, doc="Whether a paddle's motor is on.")

    @property
    def retarders(self) -> tuple[int, ...]:
        """The paddles' numbers."""
        return PADDLES

    def set_retarder(self, channel: int, value: float) -> float:
        """Turn a paddle, wait until it is there and return where it then is.

        Args:
            channel: 1 to 3.
            value: Angle, 0 to 170 degrees.

        Raises:
            UnitError: It stands elsewhere: something blocks it.
        """
        return float(self.configure({"position_deg": {channel: value}})["position_deg"][channel])

    def read_retarder(self, channel: int) -> float:
        """Read where a paddle is, in degrees."""
        return float(self.read_setting("position_deg", channel))

    def home_retarder(self, channel: int, *, timeout_s: float = PADDLE_MOVE_S) -> float:
        """Turn a paddle to the home position and return where it then is, in degrees.

        Raises:
            UnitStateError: It did not get there in time.
        """
        return self._command_motion(Message.MOT_MOVE_HOME, channel, 0, timeout_s)

    def jog(self, channel: int, *, forward: bool = True, timeout_s: float = PADDLE_MOVE_S) -> float:
        """Turn a paddle by its jog step and return where it then is, in degrees.

        Raises:
            UnitStateError: It still moves at the end of the time.
        """
        return self._command_motion(Message.MOT_MOVE_JOG, channel, 1 if forward else 2, timeout_s)

    def read_status(self) -> UnitStatus:
        """Read positions and alarms."""
        motions = {c: self._retried(lambda c=c: self._read_motion(1 << (c - 1))) for c in PADDLES}  # type: ignore[misc]
        return UnitStatus(
            state="running" if any(motion.moving for motion in motions.values()) else "idle",
            monitors={
                f"position_deg.{c}": in_units(motion.position, PADDLE_COUNTS_PER_DEG) for c, motion in motions.items()
            },
            alarms=tuple(self._alarms),
        )

    @contextmanager
    def _exchange(self, *, timeout_s: float | None = None) -> Iterator[None]:
        """Own the link, after waiting for a paddle that another thread turns."""
        with super()._exchange(timeout_s=(timeout_s or 0.0) + PADDLE_MOVE_S):
            yield

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Value:
        if setting.name == "position_deg" and channel is not None:
            return in_units(self._read_motion(1 << (channel - 1)).position, PADDLE_COUNTS_PER_DEG)
        if setting.name == "enabled" and channel is not None:
            return self._read_enabled(1 << (channel - 1))
        return super()._read_value(setting, channel)

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Value) -> None:
        if setting.name == "position_deg" and channel is not None:
            bit, counts = 1 << (channel - 1), round(float(value) * PADDLE_COUNTS_PER_DEG)
            self._enable(bit)
            self._tell(Message.MOT_MOVE_ABSOLUTE, data=struct.pack("<Hl", bit, counts))
            self._wait(
                lambda: self._read_motion(bit),
                lambda motion: abs(motion.position - counts) <= TOLERANCE,
                timeout_s=PADDLE_MOVE_S,
            )
        elif setting.name == "enabled" and channel is not None:
            self._enable(1 << (channel - 1), on=bool(value))
        else:
            super()._write_value(setting, channel, value)

    def _enable(self, bit: int, *, on: bool = True) -> None:
        """Switch one motor; the message says of all three whether they are on."""
        are_on = sum(b for b in (1, 2, 4) if self._read_enabled(b))
        wanted = are_on | bit if on else are_on & ~bit
        if wanted != are_on:
            self._tell(Message.MOD_SET_CHANENABLESTATE, wanted, ENABLED)

    def _command_motion(self, message: int, channel: int, second: int, timeout_s: float) -> float:
        """Send a command that moves a paddle, wait until it stands still and return its angle."""
        if channel not in PADDLES:
            raise ConfigurationError(f"there is no paddle {channel!r}", remedy="paddles: 1, 2, 3")
        bit = 1 << (channel - 1)
        with self._exchange():
            self._enable(bit)
            before = self._read_motion(bit).position
            self._tell(message, bit, second)
            motion, _ = self._wait(
                lambda: self._read_motion(bit), lambda motion: motion.position != before, timeout_s=timeout_s
            )
        if motion.moving:
            raise UnitStateError(f"paddle {channel} still moves after {timeout_s} s", remedy="allow more time")
        angle_deg = in_units(motion.position, PADDLE_COUNTS_PER_DEG)
        self._applied["position_deg", channel] = angle_deg
        if ("enabled", channel) in self._applied:
            self._applied["enabled", channel] = True
        return angle_deg

    def _read_motion(self, channel: int) -> Motion:
        data = self._ask(Message.MOT_REQ_USTATUSUPDATE, channel).data
        _, position, _, _, bits = struct.unpack("<HlHhL", data)
        return self._watched(Motion(position, bits))


class ThorlabsK10Cr1(AptInstrument):
    """A K10CR1 as an `interfaces.PositionerStage`; a context manager. Its measure is degrees.

    After power-up its zero is where it stands: `home` finds the real one. So the position is never restored.
    """

    model: ClassVar[str] = "K10CR1"
    unit_kind: ClassVar[str] = "motorised rotation mount"
    capabilities: ClassVar[frozenset[str]] = frozenset({"PositionerStage"})
    parameters: ClassVar[dict[str, Parameter]] = {
        "velocity_deg_per_s": Parameter(Message.MOT_REQ_VELPARAMS, "<H3l", 3, MOUNT_COUNTS_PER_DEG_PER_S),
        "acceleration_deg_per_s2": Parameter(Message.MOT_REQ_VELPARAMS, "<H3l", 2, MOUNT_COUNTS_PER_DEG_PER_S2),
        "backlash_deg": Parameter(Message.MOT_REQ_GENMOVEPARAMS, "<Hl", 1, MOUNT_COUNTS_PER_DEG),
    }

    velocity_deg_per_s = Setting(
        float, unit="°/s", minimum=0.01, maximum=10.0, step=1e-6,
        doc="Highest speed of a move.",
    )  # fmt: skip
    acceleration_deg_per_s2 = Setting(
        float, unit="°/s²", minimum=0.5, maximum=20.0, step=1 / MOUNT_COUNTS_PER_DEG_PER_S2,
        doc="Acceleration of a move.",
    )  # fmt: skip
    backlash_deg = Setting(
        float, unit="°", minimum=0.0, maximum=10.0, step=1 / MOUNT_COUNTS_PER_DEG,
        doc="How far a move backwards goes too far, to arrive forwards; 0 for none.",
    )  # fmt: skip
    enabled = Setting(bool, doc="Whether the motor is on; off, the mount can be turned by hand.")
    position_deg = Setting(float, unit="°", access="r", doc="Where it is; beyond 360 after whole turns.")

    def home(self, *, timeout_s: float = 60.0) -> None:
        """Find the zero of the scale and wait for it.

        Raises:
            UnitStateError: The motor is off, or it was not found in time.
        """
        with self._exchange():
            self._require_enabled()
            self._homed.clear()
            begun_s = time.monotonic()
            self._tell(Message.MOT_MOVE_HOME, 1)
        # The bit may still tell of the last homing: it counts once the unit has said so, or stands still for a while.
        _, found = self._wait(
            self._poll_motion,
            lambda motion: (
                bool(motion.bits & Bits.HOMED) and (1 in self._homed or time.monotonic() - begun_s > START_S)
            ),
            timeout_s=timeout_s,
        )
        if not found:
            raise UnitStateError(
                f"the mount did not find its zero within {timeout_s} s", remedy="see whether it can turn freely"
            )

    def move_to(self, position: float, *, timeout_s: float = 60.0) -> float:
        """Turn to a position, wait, and return where it then is.

        Args:
            position: Degrees from zero, -15480 to 15480; it may be several turns away.
            timeout_s: Longest wait.

        Raises:
            ConfigurationError: Out of range; nothing was sent.
            UnitStateError: The motor is off, or the mount did not get there in time.
        """
        if not -MOUNT_LONGEST_DEG <= position <= MOUNT_LONGEST_DEG:
            raise ConfigurationError(f"position {position!r} is not allowed", remedy="use degrees from -15480 to 15480")
        target = round(position * MOUNT_COUNTS_PER_DEG)
        with self._exchange():
            self._require_enabled()
            self._tell(Message.MOT_MOVE_ABSOLUTE, data=struct.pack("<Hl", 1, target))
        motion, arrived = self._wait(
            self._poll_motion, lambda motion: abs(motion.position - target) <= TOLERANCE, timeout_s=timeout_s
        )
        if not arrived:
            is_at = in_units(motion.position, MOUNT_COUNTS_PER_DEG)
            raise UnitStateError(
                f"the mount is at {is_at:.3f} degrees after {timeout_s} s, not at {position}"
                if motion.moving
                else f"the mount stopped at {is_at:.3f} degrees on its way to {position}",
                remedy="allow more time" if motion.moving else "see whether it can turn freely",
            )
        return in_units(motion.position, MOUNT_COUNTS_PER_DEG)

    def stop(self, *, abrupt: bool = False, timeout_s: float = 5.0) -> float:
        """Stop a move and return where it then is, in degrees.

        Args:
            abrupt: At once, which may lose steps; else with the set acceleration.
            timeout_s: Longest wait.

        Raises:
            UnitStateError: It still moves.
        """
        with self._exchange():
            self._tell(Message.MOT_MOVE_STOP, 1, ABRUPT if abrupt else PROFILED)
        motion, stopped = self._wait(self._poll_motion, lambda _: True, timeout_s=timeout_s)
        if not stopped:
            raise UnitStateError(f"the mount still moves {timeout_s} s after it was stopped", remedy="switch it off")
        return in_units(motion.position, MOUNT_COUNTS_PER_DEG)

    def read_position(self) -> float:
        """Return where it is, in degrees."""
        return self.position_deg

    def read_status(self) -> UnitStatus:
        """Read position and alarms; the monitor `homed` is 1 or 0."""
        motion = self._poll_motion()
        return UnitStatus(
            state="running" if motion.moving else "idle",
            monitors={
                "position_deg": in_units(motion.position, MOUNT_COUNTS_PER_DEG),
                "homed": float(bool(motion.bits & Bits.HOMED)),
            },
            alarms=tuple(self._alarms),
        )

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Value:
        if setting.name == "position_deg":
            (position,) = struct.unpack("<l", self._ask(Message.MOT_REQ_POSCOUNTER, 1).data[2:])
            return in_units(position, MOUNT_COUNTS_PER_DEG)
        if setting.name == "enabled":
            return self._read_enabled(1)
        return super()._read_value(setting, channel)

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Value) -> None:
        if setting.name == "enabled":
            self._tell(Message.MOD_SET_CHANENABLESTATE, 1, ENABLED if value else DISABLED)
        else:
            super()._write_value(setting, channel, value)

    def _require_enabled(self) -> None:
        if not self._read_enabled(1):
            raise UnitStateError("the mount's motor is off", remedy="set enabled to true")

    def _poll_motion(self) -> Motion:
        return self._retried(lambda: self._read_motion(1))

    def _read_motion(self, channel: int) -> Motion:
        _, position, _, bits = struct.unpack("<H2lL", self._ask(Message.MOT_REQ_STATUSUPDATE, channel).data)
        return self._watched(Motion(position, bits))
