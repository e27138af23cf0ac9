"""The conformance suite: every check on one driver at one address, and what came of each."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum, unique
from typing import Any

from qkdhw.errors import QkdhwError
from qkdhw.model import UnitInfo
from qkdhw.version import __version__
from qkdhw_emulators.conformance import fault_checks, safety_checks, setting_checks, stream_checks
from qkdhw_emulators.conformance.subject import BrokenRuleError, NotApplicableError, NotTriedError, Subject

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
    safety_checks.check_outputs_stay_off,
    safety_checks.check_lost_settings,
    safety_checks.check_another_unit,
    safety_checks.check_waits_end,
    stream_checks.check_faults_in_a_stream,
)

WITHOUT_A_UNIT = frozenset({setting_checks.check_description})
NEED_SETTINGS = frozenset({
    setting_checks.check_snapshot_and_restore, fault_checks.check_line_faults, fault_checks.check_faults_while_setting,
    fault_checks.check_stuck_value, fault_checks.check_late_replies, fault_checks.check_reconnect,
    safety_checks.check_lost_settings,
})  # fmt: skip


@unique
class Verdict(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check.

    Attributes:
        check: Its name.
        rule: What it checks, in words.
        verdict: Passed, failed, not applicable or not tried.
        detail: Why, if it did not pass.
        duration_s: How long it took.
    """

    check: str
    rule: str
    verdict: Verdict
    detail: str
    duration_s: float


def run_suite(subject: Subject, only: Collection[str] = ()) -> Iterator[Outcome]:
    """Run all checks, or those named, one after the other, and yield what came of each.

    What has failed once is not reported again by the checks that depend on it: they are not tried.
    """
    opened, why = _verdict(_look_at, subject)
    untried: dict[Callable[[Subject], None], str] = {}
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        if only and name not in only:
            continue
        begun_s = time.monotonic()
        if check in untried:
            verdict, detail = Verdict.NOT_TRIED, untried[check]
        elif opened is Verdict.FAILED and check not in WITHOUT_A_UNIT:
            verdict, detail = opened, why
            untried = dict.fromkeys(set(CHECKS) - WITHOUT_A_UNIT, f"the unit cannot be opened, see {name}")
        else:
            verdict, detail = _verdict(check, subject)
        if verdict is Verdict.FAILED and check is setting_checks.check_settings_round_trip:
            untried |= dict.fromkeys(NEED_SETTINGS, f"settings do not work, see {name}")
        rule = (check.__doc__ or "").partition("\n")[0]
        yield Outcome(name, rule, verdict, detail, time.monotonic() - begun_s)


def report_of(subject: Subject, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return a report, JSON-able."""
    count = {verdict: sum(outcome.verdict is verdict for outcome in outcomes) for verdict in Verdict}
    return {
        "qkdhw": __version__,
        "driver": subject.name,
        "address": subject.url,
        "unit": subject.said,
        "transport": subject.url.partition(":")[0],
        "rounds": subject.rounds,
        "seed": subject.served.world.seed if subject.served else None,
        "emulated": subject.served is not None,
        "conforms": count[Verdict.FAILED] == 0 and count[Verdict.PASSED] > 0,
        "counts": {str(verdict): number for verdict, number in count.items()},
        "checks": [asdict(outcome) for outcome in outcomes],
    }


def _look_at(subject: Subject) -> None:
    """Open the unit and keep what it says of itself."""
    with subject.open() as unit:
        info = unit.identify()
        if isinstance(info, UnitInfo):
            said = asdict(info)
            subject.said.update({name: str(value) for name, value in said.items() if value or name != "protocol"})


def _verdict(check: Callable[[Subject], None], subject: Subject) -> tuple[Verdict, str]:
    try:
        check(subject)
    except NotTriedError as reason:
        return Verdict.NOT_TRIED, str(reason)
    except NotApplicableError as reason:
        return Verdict.NOT_APPLICABLE, str(reason)
    except BrokenRuleError as error:
        return Verdict.FAILED, str(error)
    except QkdhwError as error:
        return Verdict.FAILED, f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - a driver under test may raise anything, and that is a finding
        return Verdict.FAILED, f"an error of no known type, {type(error).__name__}: {error}, {_place(error, subject)}"
    return Verdict.PASSED, ""


def _place(error: Exception, subject: Subject) -> str:
    """Say where an error comes from: file and line, and whose code that is."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    where = traceback.extract_tb(error.__traceback__)[-1]
    emulator = type(subject.served.unit) if subject.served else ()
    for frame in reversed(frames):
        owner = frame.f_locals.get("self")
        if isinstance(owner, subject.driver):
            return f"{where.filename}:{where.lineno}, in the driver"
        if isinstance(owner, emulator):
            return f"{where.filename}:{where.lineno}, in the emulator"
    return f"{where.filename}:{where.lineno}"
