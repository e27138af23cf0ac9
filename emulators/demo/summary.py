"""What a demo run comes to: one JSON object, and the table that people see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from qkdhw.postprocessing.session import KEY_BYTES
from qkdhw_emulators.demo.stage import DemoRun

Summary = dict[str, Any]


def summarise(run: DemoRun) -> Summary:
    """Turn the events of both sites into the object that `qkdhw demo --json` prints (docs/reference/demo-json.md)."""
    received = [event["statistics"] for event in run.of("receiver", "block")]
    sent = [event["statistics"] for event in run.of("transmitter", "block")]
    totals = _totals(received)
    totals["keys_stored"] = min(_keys_in_store(run, role) for role in ("transmitter", "receiver"))
    totals["keys_exported"] = min(_sum(run.of(role, "exported"), "keys") for role in ("transmitter", "receiver"))
    totals["keys_confirmed"] = min(_sum(run.of(role, "exported"), "confirmed") for role in ("transmitter", "receiver"))
    checks = [block["failed_check"] for block in received if block["failed_check"]]
    refusals = [event for event in run.of("receiver", "session-broken") if event]
    tls = {event["result"]: dict(event) for event in run.of("receiver", "tls")}
    keys = totals["keys_stored"] > 0
    eavesdropper = run.options.eavesdropper != "none"
    finished = all(code == 0 for code in run.exit_codes.values()) and len(run.exit_codes) == 2
    tls_ok = "accepted" in tls and "refused" in tls
    confirmed = totals["keys_confirmed"] == totals["keys_exported"] > 0
    return {
        "ok": finished and ((keys and confirmed and tls_ok) if not eavesdropper else (not keys and bool(checks))),
        "outcome": "keys" if keys else "no key",
        "stopped_by": checks[0] if checks else (refusals[-1]["error"] if refusals else ""),
        "reason": next((block["failure"] for block in received if block["failure"]), "")
        or (refusals[-1]["reason"] if refusals and not keys else ""),
        "options": run.options.emulated(),
        "units": {role: next((e["info"] for e in run.of(role, "unit")), {}) for role in ("transmitter", "receiver")},
        "clock": {
            name: next((event[name] for event in run.of("receiver", "aligned")), None)
            for name in ("significance", "clock_ppm")
        },
        "totals": totals,
        "blocks": received,
        "gating": [event["gating"] for event in run.of("receiver", "block")],
        "tls": tls,
        "classical_bytes": _sum(run.of("receiver", "end"), "sent_bytes")
        + _sum(run.of("receiver", "end"), "received_bytes"),
        "duration_s": {**run.duration_s, **_stages(sent, received)},
        "errors": run.errors,
    }


def _totals(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    good = [block for block in blocks if not block["failed_check"]]
    key_bits = sum(block["n_sifted_key"] for block in blocks)
    test_bits = sum(block["n_sifted_test"] for block in blocks)
    wrong_test = sum(sum(block["counts"]["m_test"]) for block in blocks if block["counts"])
    good_bits = sum(block["n_sifted_key"] for block in good)
    wrong_key = sum(round(block["qber_key"] * block["n_sifted_key"]) for block in good)
    lengths = [block["key_length"] for block in good]
    return {
        "pulses": sum(block["n_slots"] for block in blocks),
        "detections": sum(block["n_detections"] for block in blocks),
        "sifted_key_bits": key_bits,
        "sifted_test_bits": test_bits,
        "qber_key": wrong_key / good_bits if good_bits else None,
        "qber_test": wrong_test / test_bits if test_bits else None,
        "leak_bits": sum(block["leak_bits"] for block in good),
        "efficiency": (
            sum(block["efficiency"] * block["n_sifted_key"] for block in good) / good_bits if good_bits else None
        ),
        "secret_bits": sum(length["length_bits"] for length in lengths),
        "key_bits": sum(8 * KEY_BYTES * block["n_keys"] for block in good),
        "authentication_bits": sum(8 * block["authentication_bytes"] for block in good),
        "blocks": len(blocks),
        "blocks_with_key": len(good),
        "proof": lengths[0]["proof"] if lengths else "",
        "eps_sec": sum(length["eps_sec"] for length in lengths),
        "eps_cor": sum(length["eps_cor"] for length in lengths),
    }


def _keys_in_store(run: DemoRun, role: str) -> int:
    counts: Mapping[str, int] = next((event["counts"] for event in reversed(run.of(role, "end"))), {})
    return sum(counts.get(state, 0) for state in ("ready", "reserved", "delivered"))


def _sum(events: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(event[name]) for event in events)


def _stages(sent: Sequence[Mapping[str, Any]], received: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of work per stage of post-processing, both sites, all blocks."""
    stages: dict[str, float] = {}
    for site, blocks in (("transmitter", sent), ("receiver", received)):
        for block in blocks:
            for name, seconds in block["duration_s"].items():
                key = f"{site} {name}"
                stages[key] = stages.get(key, 0.0) + seconds
    return stages


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.3f} %"


def rows(summary: Summary) -> list[tuple[str, str]]:
    """The lines of the table and of the report: what, and how much."""
    totals, clock, tls = summary["totals"], summary["clock"], summary["tls"]
    f = totals["efficiency"]
    lines = [
        ("pulses sent", f"{totals['pulses']:,}"),
        ("detections in the gates", f"{totals['detections']:,}"),
        ("sifted bits, key basis", f"{totals['sifted_key_bits']:,}"),
        ("sifted bits, test basis", f"{totals['sifted_test_bits']:,}"),
        ("QBER, key basis", _percent(totals["qber_key"])),
        ("QBER, test basis", _percent(totals["qber_test"])),
        ("bits leaked in reconciliation", f"{totals['leak_bits']:,}"),
        ("efficiency f", "-" if f is None else f"{f:.3f}"),
        (
            "secret key length",
            f"{totals['secret_bits']:,} bits in {totals['blocks_with_key']} of {totals['blocks']} blocks",
        ),
        ("proof", totals["proof"] or "-"),
        (
            "epsilons (all blocks)",
            f"secrecy {totals['eps_sec']:.1e}, correctness {totals['eps_cor']:.1e}"
            if totals["blocks_with_key"]
            else "-",
        ),
        ("keys stored at both sites", f"{totals['keys_stored']:,} keys of {8 * KEY_BYTES} bits"),
        ("keys exported to both tokens", f"{totals['keys_exported']:,}"),
        ("keys proved equal in the tokens", f"{totals['keys_confirmed']:,}"),
    ]
    if clock["clock_ppm"] is not None:
        lines.insert(
            2, ("clock difference found", f"{clock['clock_ppm']:+.3f} ppm at {clock['significance']:.0f} sigma")
        )
    if "accepted" in tls:
        session = tls["accepted"]
        lines.append(
            (
                "TLS session",
                f"{session['version']}, {session['cipher']}, {session['group']}, peer {session['peer_name']}",
            )
        )
    if "refused" in tls:
        lines.append(("TLS with another QKD key", f"refused: {tls['refused']['check']}"))
    if summary["stopped_by"]:
        lines.append(("stopped by check", f"{summary['stopped_by']}: {summary['reason']}"))
    return lines


def time_rows(summary: Summary) -> list[tuple[str, str]]:
    """The lines of the table of time: which stage, and how long."""
    return [(name, f"{seconds:.2f} s") for name, seconds in summary["duration_s"].items()]


def last_line(summary: Summary) -> str:
    """Why the exit code is what it is."""
    listened = summary["options"]["eavesdropper"] != "none"
    keys = summary["outcome"] == "keys"
    match summary["ok"], listened:
        case True, False:
            why = "the same keys are in both tokens"
        case True, True if summary["stopped_by"] == "qber":
            why = "the eavesdropper was noticed"
        case True, True:
            why = f"no key for the eavesdropper, stopped by check '{summary['stopped_by']}'"
        case _ if summary["errors"]:
            why = "a site failed"
        case False, True if keys:
            why = "keys were made although somebody listened"
        case False, True:
            why = "no key, but no check noticed the eavesdropper"
        case _ if keys:
            why = "keys were made, but not all were proved equal or the TLS sessions went wrong"
        case _:
            why = "no key although nobody listened"
    return f"{why}: exit code {0 if summary['ok'] else 1}"


def print_summary(summary: Summary, console: Console) -> None:
    """Print the tables that end a run."""
    table = Table(title="from photons to a session", show_header=False)
    for name, value in rows(summary):
        table.add_row(name, value)
    console.print(table)
    times = Table(title="time", show_header=False)
    for name, value in time_rows(summary):
        times.add_row(name, value)
    console.print(times)
