"""Whether a link may give keys: both units answer, neither has an alarm, and a probe has few bit errors."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from qkdhw import open_unit
from qkdhw.errors import QkdhwError
from qkdhw.events.alignment import align_to_sync_frame
from qkdhw.events.wiring import Wiring
from qkdhw.model import Basis

PS_PER_S = 10**12
PROBE_PULSES, PROBE_CLICKS = 1_000_000, 20_000
QBER_LIMIT = 0.05
WIRING = Wiring({1: (Basis.KEY, 0), 2: (Basis.KEY, 1), 3: (Basis.TEST, 0), 4: (Basis.TEST, 1)})


@dataclass(frozen=True)
class Verdict:
    """What came of it: a reason to refuse the link, or None; and the probe's bit error rate if there was one."""

    refused: str | None = None
    qber: float | None = None


def admit(transmitter_url: str, receiver_url: str, *, timeout_s: float = 2.0) -> Verdict:
    """Probe a link; nothing is left running."""
    try:
        with (
            open_unit("generic-tx", transmitter_url, timeout_s=timeout_s) as transmitter,
            open_unit("sfifteen-tdc1", receiver_url, timeout_s=timeout_s) as receiver,
        ):
            alarms = [*transmitter.read_status().alarms, *receiver.read_status().alarms]
            if alarms:
                return Verdict(refused=f"alarm: {', '.join(alarms)}")
            qber = _probe(transmitter, receiver)
    except QkdhwError as error:
        return Verdict(refused=f"{type(error).__name__}: {error}")
    return Verdict(refused=f"QBER {qber:.1%}" if qber > QBER_LIMIT else None, qber=qber)


def _probe(transmitter: Any, receiver: Any) -> float:
    """Send some pulses, and compare what was sent with what clicked; none of it becomes key."""
    receiver.start()
    transmitter.arm()
    transmitter.start()
    sent = transmitter.read_preparation(PROBE_PULSES)
    clicks = receiver.read_block(PROBE_CLICKS)
    period_ticks = Fraction(PS_PER_S, int(transmitter.read_setting("pulse_rate_hz"))) / clicks.tick_ps
    return align_to_sync_frame(clicks, WIRING, sent.record, sent.first_pulse_index, period_ticks).qber_estimate
