"""The conformance suite: every check on one driver at one address, and what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum, unique
from typing import Any

from qkdhw.errors import QkdhwError
from qkdhw.version import __version__
from qkdhw_emulators.conformance import fault_checks, setting_checks, stream_checks
from qkdhw_emulators.conformance.subject import BrokenRuleError, NotApplicableError, Subject

CHECKS: tuple[Callable[[Subject], None], ...] = (
    setting_checks.check_identity,
    setting_checks.check_capabilities,
    setting_checks.check_description,
    setting_checks.check_status,
    setting_checks.check_settings_round_trip,
    setting_checks.check_range_errors,
    setting_checks.check_snapshot_and_restore,
    setting_checks.check_closes_twice,
    stream_checks.check_stream,
    stream_checks.check_event_times,
    stream_checks.check_stream_context,
    stream_checks.check_wrong_state,
    stream_checks.check_overflow,
    stream_checks.check_transmitter_states,
    fault_checks.check_threads,
    fault_checks.check_line_faults,
    fault_checks.check_faults_while_setting,
    fault_checks.check_unit_faults,
    fault_checks.check_stuck_value,
    fault_checks.check_late_replies,
    fault_checks.check_reconnect,
    stream_checks.check_faults_in_a_stream,
)


@unique
class Verdict(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check.

    Attributes:
        check: Its name.
        rule: What it checks, in words.
        verdict: Passed, failed or not applicable.
        detail: Why, if it did not pass.
        duration_s: How long it took.
    """

    check: str
    rule: str
    verdict: Verdict
    detail: str
    duration_s: float


def run_suite(subject: Subject, only: Collection[str] = ()) -> Iterator[Outcome]:
    """Run all checks, or those named, one after the other, and yield what came of each."""
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        if only and name not in only:
            continue
        begun_s = time.monotonic()
        verdict, detail = _verdict(check, subject)
        rule = (check.__doc__ or "").partition("\n")[0]
        yield Outcome(name, rule, verdict, detail, time.monotonic() - begun_s)


def report_of(subject: Subject, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return a report, JSON-able."""
    count = {verdict: sum(outcome.verdict is verdict for outcome in outcomes) for verdict in Verdict}
    return {
        "qkdhw": __version__,
        "driver": subject.name,
        "address": subject.url,
        "emulated": subject.served is not None,
        "conforms": count[Verdict.FAILED] == 0 and count[Verdict.PASSED] > 0,
        "counts": {str(verdict): number for verdict, number in count.items()},
        "checks": [asdict(outcome) for outcome in outcomes],
    }


def _verdict(check: Callable[[Subject], None], subject: Subject) -> tuple[Verdict, str]:
    try:
        check(subject)
    except NotApplicableError as reason:
        return Verdict.NOT_APPLICABLE, str(reason)
    except BrokenRuleError as error:
        return Verdict.FAILED, str(error)
    except QkdhwError as error:
        return Verdict.FAILED, f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - a driver under test may raise anything, and that is a finding
        return Verdict.FAILED, f"an error of no known type, {type(error).__name__}: {error}"
    return Verdict.PASSED, ""
