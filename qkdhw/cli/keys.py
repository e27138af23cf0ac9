"""`qkdhw keys`: make a key store, look at it and burn keys. Only making one needs the KEK; nothing prints key bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from qkdhw.cli.console import JsonOption, out, plain, print_json
from qkdhw.keys.account import Role
from qkdhw.keys.installation import install_site, make_start_key_file
from qkdhw.keys.segments import SegmentState
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState

app = typer.Typer(help="Make a key store, look at it and burn keys.", no_args_is_help=True)

StoreOption = Annotated[Path, typer.Option("--store", help="The key store's file.")]


# A key ID has 36 characters; a terminal narrower than this may break it into two lines, but none of it is cut.
_NARROW_COLUMNS = 64


def _open(path: Path, *, read_only: bool = True) -> SqliteKeyStore:
    return SqliteKeyStore.open(path, None, read_only=read_only)


def _print_table(columns: Sequence[str | Column], rows: Sequence[Sequence[object]]) -> None:
    folding = (Column(name, overflow="fold") if isinstance(name, str) else name for name in columns)
    table = Table(*folding, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*(plain(value) for value in row))
    out.print(table)


@app.command("make-start-key")
def make_start_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; it must not exist.")],
    size: Annotated[int, typer.Option(help="Bytes, a multiple of 32; at least 16384.")] = 65536,
    json: JsonOption = False,
) -> None:
    """Write a random start key, for its owner alone (mode 0600).

    A courier brings one copy to each site; both sites install the same one with `qkdhw keys create`. Whoever has a
    copy can forge messages of the link: destroy the copies once both stores are made.
    """
    make_start_key_file(file, size)
    if json:
        print_json({"file": str(file), "size_bytes": size})
        return
    out.print(f"start key of {size:,} bytes written to {file}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def create(
    store: Annotated[Path, typer.Option("--store", help="File of the new key store; it must not exist.")],
    kek: Annotated[Path, typer.Option("--kek", help="KEK file; made (mode 0600) if it does not exist.")],
    role: Annotated[Role, typer.Option(help="This site's role on the link; the peer has the other one.")],
    start_key: Annotated[
        Path, typer.Option("--start-key", help="Start key, the same at both sites; no one else may read the file.")
    ],
    json: JsonOption = False,
) -> None:
    """Make a key store and install the start key, whole or not at all.

    The store keeps keys wrapped under the KEK: keep the KEK file out of the store's backups. The start key file is
    not needed any more afterwards: destroy it.
    """
    made = install_site(store, kek, start_key, role=role)
    if json:
        print_json({"store": str(store), "kek": str(kek), "role": role, **asdict(made)})
        return
    for line in (
        f"key store {store} made for the {role}'s site, start key of {made.start_key_bytes:,} bytes installed",
        f"KEK file {kek} {'made' if made.kek_created else 'was there and is used'}",
        f"now destroy {start_key} and the courier's copy",
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_keys(
    store: StoreOption,
    state: Annotated[KeyState | None, typer.Option(help="Only keys in this state.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest N of them.", metavar="N")] = None,
    json: JsonOption = False,
) -> None:
    """List the keys, oldest first."""
    with _open(store) as opened:
        records = opened.records(state=state)[-(limit or 0) :]
    if json:
        print_json([asdict(record) for record in records])
        return
    wide = out.width >= _NARROW_COLUMNS
    key_id, key_state = (Column(name, no_wrap=wide, overflow="fold") for name in ("key ID", "state"))
    _print_table(
        (key_id, "link", "block", "bits", key_state, "receiver"),
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
def audit(
    store: StoreOption,
    last: Annotated[int | None, typer.Option(min=1, help="Print the last N entries only.", metavar="N")] = None,
    json: JsonOption = False,
) -> None:
    """Print the audit trail, after checking all of its chain and that the store's contents agree with it."""
    with _open(store) as opened:
        summary = opened.verify_audit()
        entries = opened.audit_entries()[-(last or 0) :]
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
        ("#", "time (UTC)", "subject", "event", "state", "detail"),
        [
            (e.sequence, _utc(e.time_unix_ns), e.change.subject, e.change.event, e.change.state, e.change.detail)
            for e in entries
        ],
    )
    out.print(f"verified: {summary.entries} entries, head {summary.head}", highlight=False, soft_wrap=True)


def _utc(time_unix_ns: int) -> str:
    """Say a time in ISO 8601, to the millisecond."""
    seconds, rest_ns = divmod(time_unix_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns // 10**6:03d}Z"


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
