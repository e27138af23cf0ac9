"""`qkdhw keys`: look at a key store and burn keys. None of it needs the KEK, and none of it prints key bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from qkdhw.cli.console import JsonOption, out, print_json
from qkdhw.keys.segments import SegmentState
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState

app = typer.Typer(help="Look at a key store and burn keys.", no_args_is_help=True)

StoreOption = Annotated[Path, typer.Option("--store", help="The key store's file.")]


def _open(path: Path, *, read_only: bool = True) -> SqliteKeyStore:
    return SqliteKeyStore.open(path, None, read_only=read_only)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(value) for value in row))
    out.print(table)


@app.command("list")
def list_keys(
    store: StoreOption,
    state: Annotated[KeyState | None, typer.Option(help="Only keys in this state.")] = None,
    json: JsonOption = False,
) -> None:
    """List the keys, oldest first."""
    with _open(store) as opened:
        records = opened.records(state=state)
    if json:
        print_json([asdict(record) for record in records])
        return
    _print_table(
        ("key ID", "link", "block", "bits", "state", "receiver"),
        [(r.key_id, r.link, r.block_id, r.size_bits, r.state, r.receiver) for r in records],
    )


@app.command()
def show(
    key_id: Annotated[str, typer.Argument(help="The key ID.")], store: StoreOption, json: JsonOption = False
) -> None:
    """Show one key's record and history: its proof, its statistics, everything but the key."""
    with _open(store) as opened:
        record = opened.record(key_id)
        history = [
            {"sequence": entry.sequence, "time_unix_ns": entry.time_unix_ns, **asdict(entry.change)}
            for entry in opened.audit_entries()
            if entry.change.subject == f"key {key_id}"
        ]
    value = {**asdict(record), "history": history}
    if json:
        print_json(value)
        return
    for name, content in value.items():
        if name not in {"metadata", "history"}:
            out.print(f"{name}: {content}", markup=False, highlight=False)
    out.print_json(data={"metadata": dict(record.metadata), "history": history}, default=str)


@app.command()
def status(store: StoreOption, json: JsonOption = False) -> None:
    """Count keys by state, and the authentication masks that are left in each direction."""
    with _open(store) as opened:
        counts = opened.counts()
        active = opened.segments(state=SegmentState.ACTIVE)
    value: dict[str, Any] = {
        "keys": {str(state): count for state, count in counts.items()},
        "authentication": {
            "active_segments": len(active),
            "send_masks": sum(segment.masks - segment.send_reserved for segment in active),
            "receive_masks": sum(segment.masks - 1 - segment.receive_floor for segment in active),
        },
    }
    if json:
        print_json(value)
        return
    _print_table(("keys", "count"), list(value["keys"].items()))
    _print_table(("authentication", "count"), list(value["authentication"].items()))


@app.command()
def audit(store: StoreOption, json: JsonOption = False) -> None:
    """Print the audit trail, after checking its chain and that the store's contents agree with it."""
    with _open(store) as opened:
        summary = opened.verify_audit()
        entries = opened.audit_entries()
    if json:
        print_json(
            {
                "verified": True,
                "head": summary.head,
                "entries": [
                    {"sequence": entry.sequence, "time_unix_ns": entry.time_unix_ns, **asdict(entry.change)}
                    for entry in entries
                ],
            }
        )
        return
    _print_table(
        ("#", "time (UNIX ns)", "subject", "event", "state", "detail"),
        [
            (e.sequence, e.time_unix_ns, e.change.subject, e.change.event, e.change.state, e.change.detail)
            for e in entries
        ],
    )
    out.print(f"verified: {summary.entries} entries, head {summary.head}", highlight=False, soft_wrap=True)


@app.command()
def burn(
    key_id: Annotated[str, typer.Argument(help="The key ID.")],
    store: StoreOption,
    reason: Annotated[str, typer.Option(help="Why; it stands in the audit trail.")],
    json: JsonOption = False,
) -> None:
    """Burn a key: it is erased here and never given out. Burn it at the peer site as well."""
    with _open(store, read_only=False) as opened:
        opened.burn([key_id], reason=reason)
        record = opened.record(key_id)
    if json:
        print_json(asdict(record))
        return
    out.print(f"key {key_id} is burnt", highlight=False, soft_wrap=True)
