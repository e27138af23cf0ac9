"""`qkdhw demo` from end to end: what it prints, what it writes, what is in the two tokens afterwards."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from demo_run import ROLES, DemoProcess, run_demo

from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState

ROOT = Path(__file__).parents[2]
REPEATABLE = ("pulses", "detections", "sifted_key_bits", "sifted_test_bits", "qber_key", "qber_test", "leak_bits",
              "efficiency", "secret_bits")  # fmt: skip
BLOCK_COUNTS = ("block_id", "first_slot", "n_slots", "n_detections", "n_sifted_key", "n_sifted_test", "qber_key",
                "qber_test", "counts")  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def documented_fields() -> list[str]:
    """Every field that the table in demo-json.md names; `totals.a`, `.b` means totals.a and totals.b."""
    fields = []
    for line in (ROOT / "docs/reference/demo-json.md").read_text().splitlines():
        if line.startswith("| `"):
            section = ""
            for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
                if "." in name and not name.startswith("."):
                    section = name.split(".")[0]
                fields.append(section + name if name.startswith(".") else name)
    return fields


def keys_ever_stored(run: DemoProcess) -> dict[str, int]:
    found = {}
    for role in ROLES:
        with SqliteKeyStore.open(run.folder / role / "keys.sqlite", None, read_only=True) as store:
            counts = store.counts()
            found[role] = sum(counts.values())
            assert counts[KeyState.PENDING] == counts[KeyState.RESERVED] == 0
    return found


def token(run: DemoProcess, role: str, nonce: bytes) -> list[dict[str, Any]]:
    folder = run.folder / role
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("token_reader.py"), folder, nonce.hex()],
        capture_output=True, text=True, timeout=60, check=True, env=os.environ | {"SOFTHSM2_CONF": str(folder / "softhsm2.conf")},
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer


def test_it_does_its_job(seed_7: DemoProcess) -> None:
    assert seed_7.code == 0, seed_7.stderr
    summary = seed_7.summary()
    totals = summary["totals"]
    assert (summary["ok"], summary["outcome"], summary["stopped_by"], summary["errors"]) == (True, "keys", "", {})
    assert totals["blocks"] == totals["blocks_with_key"] == 3
    assert totals["proof"] == "rigorous"
    assert 0 < totals["key_bits"] + totals["authentication_bits"] <= totals["secret_bits"]
    assert totals["keys_stored"] == totals["key_bits"] // 256 == min(keys_ever_stored(seed_7).values())
    assert totals["keys_exported"] == totals["keys_confirmed"] == 24
    assert summary["tls"]["accepted"]["version"] == "TLS 1.3"
    assert summary["tls"]["accepted"]["echoed_bytes"] > 0
    assert summary["tls"]["refused"]["check"]
    # What was emulated, found again by the sites.
    assert totals["qber_key"] == pytest.approx(0.01, abs=0.002)
    assert summary["clock"]["clock_ppm"] == pytest.approx(5.0, abs=0.01)


def test_longer_blocks_make_key_where_short_ones_do_not(tmp_path: Path) -> None:
    """The example of docs/tutorials/first-link.md, step 4."""
    fibre = ("--loss-db", "15", "--duration", "16", "--json")
    short, long = run_demo(tmp_path / "short", *fibre), run_demo(tmp_path / "long", *fibre, "--block-duration", "16")
    assert (short.code, short.summary()["totals"]["blocks_with_key"]) == (1, 0)
    assert (long.code, long.summary()["totals"]["blocks_with_key"]) == (0, 1)
    assert "no key although nobody listened: exit code 1" in short.stderr
    options = long.summary()["options"]
    assert (options["blocks"], options["block_pulses"], options["block_duration_s"]) == (1, 320_000_000, 16.0)
    assert options["duration_s"] == pytest.approx(16 + options["sync_pulses"] / options["pulse_rate_hz"])


def test_progress_goes_to_standard_error(seed_7: DemoProcess) -> None:
    for text in (
        "clocks aligned at",
        "block 3:",
        "8 proved equal there",
        "TLS session accepted",
        "TLS session refused",
    ):
        assert text in seed_7.stderr


def test_every_documented_field_is_there_and_no_other(seed_7: DemoProcess) -> None:
    summary = seed_7.summary()
    named = documented_fields()
    assert len(named) > 30
    for name in named:
        value: Any = summary
        for part in name.split("."):
            assert part in value, f"{name} is documented and missing"
            value = value[part]
    assert {name.split(".")[0] for name in named} == set(summary)
    assert {name.split(".")[1] for name in named if name.startswith("totals.")} == set(summary["totals"])


def test_the_same_seed_gives_the_same_sifted_statistics(seed_7: DemoProcess, tmp_path: Path) -> None:
    again = run_demo(tmp_path, "--seed", "7", "--json")
    assert again.code == 0, again.stderr
    first, second = seed_7.summary(), again.summary()
    for name in REPEATABLE:
        assert first["totals"][name] == second["totals"][name], name
    for one, other in zip(first["blocks"], second["blocks"], strict=True):
        assert {name: one[name] for name in BLOCK_COUNTS} == {name: other[name] for name in BLOCK_COUNTS}
    assert first["gating"] == second["gating"]
    nonce = secrets.token_bytes(32)
    assert not {key["key_id"] for key in token(seed_7, "receiver", nonce)} & {
        key["key_id"] for key in token(again, "receiver", nonce)
    }


def test_both_tokens_hold_the_same_keys_and_give_none_away(seed_7: DemoProcess) -> None:
    nonce = secrets.token_bytes(32)
    transmitter, receiver = (token(seed_7, role, nonce) for role in ROLES)
    assert transmitter == receiver
    assert len({key["mac"] for key in receiver}) == len(receiver) == 24
    assert {(key["sensitive"], key["extractable"], key["readable"]) for key in receiver} == {(True, False, False)}


def test_the_report_stands_alone(seed_7: DemoProcess) -> None:
    page = seed_7.report
    links = re.findall(r'(?:(xmlns\S*)=)?"?(https?://[^"\s<>]+)', page)
    assert {url for namespace, url in links if not namespace} <= {"http://www.w3.org/TR/SVG11/DTD/svg11.dtd"}
    assert not re.search(r"<(script|link|img|iframe)\b|url\(['\"]?(?!#)|@import", page)
    assert page.count("<svg") == page.count("</svg>") == page.count("<figcaption>") == 3
    totals = seed_7.summary()["totals"]
    for name in ("pulses", "detections", "sifted_key_bits", "leak_bits", "secret_bits", "keys_stored"):
        assert f"{totals[name]:,}" in page
    assert f"{100 * totals['qber_key']:.3f} %" in page
    assert [path.name for path in seed_7.out.iterdir() if path.name.endswith(".part")] == []
    assert "receiver sift" in page
    assert re.search(r"Written \d{4}-\d\d-\d\d [\d:]{8} UTC by qkdhw \d", page)
    assert "background: #e3f4e3" in page


def test_an_eavesdropper_gets_the_link_no_key(tmp_path: Path) -> None:
    run = run_demo(tmp_path, "--seed", "7", "--eavesdropper", "intercept-resend", "--duration", "2.2")
    assert run.code == 0, run.stderr
    assert "no key, stopped by check 'qber'" in run.stdout
    assert "stopped by check" in run.stdout
    found = re.search(r"QBER, test basis\s*│\s*([\d.]+) %", run.stdout)
    assert found is not None
    assert float(found[1]) == pytest.approx(25, abs=1.5)
    assert keys_ever_stored(run) == {"transmitter": 0, "receiver": 0}
    assert [token(run, role, b"nonce") for role in ROLES] == [[], []]
    assert "the check &#x27;qber&#x27; stopped it" in run.report
    assert "background: #eef" in run.report
    assert "None" not in run.report
    assert re.search(r"epsilons \(all blocks\)\s*│ -\s*│", run.stdout)
    assert run.stdout.strip().splitlines()[-1] == "the eavesdropper was noticed: exit code 0"


def test_too_much_loss_is_no_success_and_says_why(tmp_path: Path) -> None:
    run = run_demo(tmp_path, "--loss-db", "25", "--duration", "2.2", "--json")
    summary = run.summary()
    assert (run.code, summary["ok"], summary["outcome"]) == (1, False, "no key")
    assert summary["stopped_by"] == "key-length"
    assert "allows no key" in summary["reason"]
    assert keys_ever_stored(run) == {"transmitter": 0, "receiver": 0}


def test_no_light_at_all_is_an_end_and_no_wait(tmp_path: Path) -> None:
    run = run_demo(tmp_path, "--loss-db", "60", "--duration", "2", "--json")
    summary = run.summary()
    assert (run.code, summary["ok"], summary["outcome"]) == (1, False, "no key")
    assert summary["stopped_by"] == "ClockAlignmentError"
    assert "too few" in summary["reason"]
    assert "Traceback" not in run.stderr
    assert summary["duration_s"]["total"] < 45


def test_a_misaligned_fibre_gives_shorter_keys_or_names_the_check(tmp_path: Path) -> None:
    run = run_demo(tmp_path, "--misalignment", "0.03", "--duration", "2.2", "--json")
    summary = run.summary()
    assert summary["totals"]["qber_test"] == pytest.approx(0.03, abs=0.006)
    if summary["outcome"] == "keys":
        assert run.code == 0
    else:
        assert (run.code, summary["stopped_by"]) == (1, "key-length")
        assert summary["reason"]
