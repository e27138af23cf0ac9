"""`qkdhw link run` without --json: one line an event, for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from qkdhw.cli.link import _print_event
from qkdhw.model import BlockStatistics, KeyLength, KeyState, UnitInfo

LENGTH = KeyLength(
    length_bits=4096, proof="rigorous", rigorous=True, eps_sec=1e-9, eps_cor=1e-15, bounds={}, assumptions=(), reason=""
)


def block(**facts: Any) -> dict[str, Any]:
    block_statistics = BlockStatistics(3, 0, 10**9, 70000, 50123, 1800, **facts)
    return {"event": "block", "statistics": asdict(block_statistics)}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "unit", "info": asdict(UnitInfo("Vendor", "TX-1", "0042"))}, "unit: Vendor TX-1 serial 0042"),
        ({"event": "unit", "info": asdict(UnitInfo("Vendor", "TX-1", ""))}, "unit: Vendor TX-1"),
        (
            {"event": "session", "session_id": "ab12", "activated_blocks": 1, "burnt": 0},
            "session ab12: 1 earlier blocks activated, 0 burnt",
        ),
        (
            {"event": "aligned", "significance": 41.23456, "clock_ppm": -3.14159, "qber": 0.012345},
            "aligned: 41.2 sigma, clock -3.142 ppm, QBER 1.23%",
        ),
        ({"event": "collecting", "done_slots": 1, "total_slots": 2}, None),
        (block(qber_test=0.021, key_length=LENGTH), "block 3: 50,123 sifted bits, QBER 2.10%, 4,096 secret bits"),
        (
            block(qber_test=0.2, failed_check="qber", failure="0.2 is above 0.05"),
            "block 3: 50,123 sifted bits, QBER 20.00%, no key: qber: 0.2 is above 0.05",
        ),
        (block(), "block 3: 50,123 sifted bits, QBER unknown, 0 secret bits"),
        (
            {
                "event": "end",
                "counts": {KeyState.READY: 12, KeyState.DELIVERED: 4, KeyState.BURNT: 0},
                "sent_bytes": 12345,
                "received_bytes": 6,
            },
            "end: ready 12, delivered 4; 12,345 bytes sent, 6 received",
        ),
        ({"event": "burnt", "keys": 2}, "burnt: keys 2"),
        (
            {"event": "alarm", "monitor": "doubles", "block_id": 7, "said": "0 is too few", "at": "now"},
            "ALARM of the detectors, doubles in block 7: 0 is too few; no key until it is cleared with `qkdhw link alarms`",
        ),
    ],
)
def test_an_event_is_one_readable_line(
    event: dict[str, Any], line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_event(event)
    assert capsys.readouterr().out == ("" if line is None else f"{line}\n")
