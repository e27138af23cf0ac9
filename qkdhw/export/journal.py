"""Export that survives a crash: intent on disk, import, done on disk; at start, what was cut off is settled.

A key is taken from the store before it is exported and is never given out again. So an intent without its "done" has
two ends only: the token holds the key (done), or the key is burnt.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qkdhw.errors import ExportError, KeyAlreadyTakenError
from qkdhw.export.pkcs11 import ImportedKey, Pkcs11Token, import_check
from qkdhw.secret import SecretBuffer


@dataclass(frozen=True, slots=True)
class ExportIntent:
    """An export that was begun.

    Attributes:
        key_id: UUID text.
        token_serial: Serial number of the token that was to get the key.
        check: What tells the key from others (`import_check`), 32 bytes.
        state: "intent", "done" or "burnt".
        reason: Why it is burnt, or "".
    """

    key_id: str
    token_serial: str
    check: bytes
    state: str
    reason: str = ""


class ExportJournal:
    """Append-only file of one JSON object a line, each on disk (fsync) before the call returns.

    One process at a time; a last line that was cut off by a crash is dropped.

    Args:
        path: The file; it is made, readable by its owner only, if it is not there.

    Raises:
        ExportError: Another process holds the journal, or it is damaged or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._entries: dict[str, ExportIntent] = {}
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ExportError(f"cannot open export journal {self.path}: {error.strerror}") from error
        try:
            self._load()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others have it; closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def entries(self, *, state: str | None = None) -> list[ExportIntent]:
        """Return what the journal holds, oldest first, or only what is in one state."""
        return [entry for entry in self._entries.values() if state in {None, entry.state}]

    def record_intent(self, key_id: str, *, token_serial: str, check: bytes) -> None:
        """Write down that a key is about to go into a token.

        Raises:
            KeyAlreadyTakenError: The key is in the journal already.
            ExportError: The journal cannot be written.
        """
        old = self._entries.get(key_id)
        if old is not None:
            message = f"key {key_id} was exported before; its export is {old.state!r}"
            raise KeyAlreadyTakenError(message, key_id=key_id, state=old.state, remedy="Export another key.")
        self._append(ExportIntent(key_id, token_serial, check, "intent"))

    def record_done(self, key_id: str) -> None:
        """Write down that the token holds the key."""
        self._settle(key_id, "done", "")

    def record_burnt(self, key_id: str, *, reason: str) -> None:
        """Write down that the key is lost for use."""
        self._settle(key_id, "burnt", reason)

    def _settle(self, key_id: str, state: str, reason: str) -> None:
        entry = self._entries.get(key_id)
        if entry is None or entry.state != "intent":
            raise ExportError(f"key {key_id} has no open export in {self.path}")
        self._append(ExportIntent(key_id, entry.token_serial, entry.check, state, reason))

    def _append(self, entry: ExportIntent) -> None:
        value = {"key_id": entry.key_id, "token_serial": entry.token_serial, "check": entry.check.hex()}
        line = json.dumps({**value, "state": entry.state, "reason": entry.reason}).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                os.ftruncate(self._fd, size)
                raise ExportError(f"cannot write export journal {self.path}", remedy="Check free disk space.")
            os.fsync(self._fd)
        except OSError as error:
            message = f"cannot write export journal {self.path}: {error.strerror}"
            raise ExportError(message, remedy="Check free disk space.") from error
        self._entries[entry.key_id] = entry

    def _load(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            remedy = "Stop the other process that exports keys."
            raise ExportError(f"export journal {self.path} is in use", remedy=remedy) from error
        content = self.path.read_bytes()
        whole, _, cut_off = content.rpartition(b"\n")
        if cut_off:
            os.ftruncate(self._fd, len(content) - len(cut_off))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                value = json.loads(line)
                value["check"] = bytes.fromhex(value["check"])
                self._entries[value["key_id"]] = ExportIntent(**value)
            except (ValueError, KeyError, TypeError) as error:
                raise ExportError(f"line {number} of export journal {self.path} is damaged") from error
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def export_key(
    journal: ExportJournal, token: Pkcs11Token, *, key_id: str, label: str, key: SecretBuffer
) -> ImportedKey:
    """Import a key into a token with the journal around it.

    After an error the intent stays open and `recover` settles it.

    Args:
        journal: The site's journal.
        token: The open token.
        key_id: UUID text.
        label: What the key is for, such as the link's name.
        key: The key as taken from the store; the caller closes it.

    Raises:
        KeyAlreadyTakenError: The key was exported before.
        HsmError: The token refused the key.
        ExportError: The journal cannot be written.
    """
    journal.record_intent(key_id, token_serial=token.serial, check=import_check(key_id, key))
    imported = token.import_key(key_id, label, key)
    journal.record_done(key_id)
    return imported


def recover(journal: ExportJournal, token: Pkcs11Token) -> list[ExportIntent]:
    """Settle every open export into this token; call it at start, before the first export.

    The key is in the token and protected: done. Not there, another key under its ID, or not protected: burnt; an
    unprotected key is destroyed.

    Returns:
        The exports that were settled, in their new state. Tell the store and the peer about the burnt ones.

    Raises:
        HsmError: The token failed; nothing more is settled.
        ExportError: The journal cannot be written.
    """
    open_before = {entry.key_id for entry in journal.entries(state="intent") if entry.token_serial == token.serial}
    reasons = {"absent": "not in the token", "other key": "another key has its ID", "weak": "was not protected"}
    for entry in journal.entries(state="intent"):
        if entry.key_id not in open_before:
            continue
        answer = token.check_import(entry.key_id, entry.check)
        if answer == "weak":
            token.destroy(entry.key_id)
        if answer == "good":
            journal.record_done(entry.key_id)
        else:
            journal.record_burnt(entry.key_id, reason=reasons[answer])
    return [entry for entry in journal.entries() if entry.key_id in open_before]
