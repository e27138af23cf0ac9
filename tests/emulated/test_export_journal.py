"""Exports that are cut off: what recover says equals what the token holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import pytest
from pkcs11 import Attribute, KeyType, ObjectClass

from qkdhw.errors import ExportError, HsmError, KeyAlreadyTakenError
from qkdhw.export.journal import ExportJournal, export_key, recover
from qkdhw.export.pkcs11 import import_check
from qkdhw.secret import SecretBuffer

KEY_ID = "bc490419-7d60-487f-adc1-4ddcc177c139"


def states(journal):
    return {entry.key_id: entry.state for entry in journal.entries()}


def test_export_is_done_once(softhsm, tmp_path):
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as token, ExportJournal(tmp_path / "journal") as journal:
        key = SecretBuffer.random(32)
        export_key(journal, token, key_id=KEY_ID, label="lab", key=key)
        assert states(journal) == {KEY_ID: "done"}
        with pytest.raises(KeyAlreadyTakenError):
            export_key(journal, token, key_id=KEY_ID, label="lab", key=key)
        assert recover(journal, token) == []
        assert len(token.list_keys()) == 1
    with ExportJournal(tmp_path / "journal") as journal:
        assert states(journal) == {KEY_ID: "done"}


def test_recover_tells_done_from_burnt(softhsm, tmp_path):
    softhsm.make_token("site-a")
    held, absent, other, elsewhere = (str(uuid.uuid4()) for _ in range(4))
    keys = {key_id: SecretBuffer.random(32) for key_id in (held, absent, other, elsewhere)}
    with softhsm.open("site-a") as token:
        with ExportJournal(tmp_path / "journal") as journal:
            for key_id, key in keys.items():
                serial = "another" if key_id == elsewhere else token.serial
                journal.record_intent(key_id, token_serial=serial, check=import_check(key_id, key))
            token.import_key(held, "lab", keys[held])
            token.import_key(other, "lab", SecretBuffer.random(32))
        with ExportJournal(tmp_path / "journal") as journal:
            settled = {entry.key_id: entry.state for entry in recover(journal, token)}
            assert settled == {held: "done", absent: "burnt", other: "burnt"}
            assert states(journal)[elsewhere] == "intent"
            assert recover(journal, token) == []
        assert {key.key_id for key in token.list_keys()} == {held, other}  # somebody else's key is left alone


def test_unprotected_key_is_destroyed(softhsm, tmp_path):
    softhsm.make_token("site-a")
    value = os.urandom(32)
    key = SecretBuffer(32)
    key.copy_from(value)
    with softhsm.open("site-a") as token, ExportJournal(tmp_path / "journal") as journal:
        journal.record_intent(KEY_ID, token_serial=token.serial, check=import_check(KEY_ID, key))
        readable = {
            Attribute.SENSITIVE: False,
            Attribute.EXTRACTABLE: True,
            Attribute.SIGN: True,
            Attribute.TOKEN: True,
        }
        readable |= {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET}
        token._session.create_object(readable | {Attribute.ID: uuid.UUID(KEY_ID).bytes, Attribute.VALUE: value})
        assert token.check_import(KEY_ID, import_check(KEY_ID, key)) == "weak"
        (settled,) = recover(journal, token)
        assert (settled.state, settled.reason) == ("burnt", "was not protected")
        assert token.list_keys() == []


def test_refused_import_stays_open_until_recover(softhsm, tmp_path):
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as token, ExportJournal(tmp_path / "journal") as journal:
        first, second = SecretBuffer.random(32), SecretBuffer.random(32)
        token.import_key(KEY_ID, "lab", first)
        with pytest.raises(HsmError):
            export_key(journal, token, key_id=KEY_ID, label="lab", key=second)
        (settled,) = recover(journal, token)
        assert (settled.state, settled.reason) == ("burnt", "another key has its ID")


def test_cut_off_last_line_is_dropped(tmp_path):
    path = tmp_path / "journal"
    with ExportJournal(path) as journal:
        journal.record_intent(KEY_ID, token_serial="1", check=bytes(32))
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        with ExportJournal(path) as journal:
            assert states(journal) == {KEY_ID: "intent"}
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{}\n", b"no\n", b"[1]\n", b'{"key_id": "x", "check": "zz"}\n', b"\xff\n"])
def test_damaged_journal_is_refused(tmp_path, line):
    (tmp_path / "journal").write_bytes(line)
    with pytest.raises(ExportError, match="line 1"):
        ExportJournal(tmp_path / "journal")


def test_one_process_at_a_time(tmp_path):
    with ExportJournal(tmp_path / "journal"), pytest.raises(ExportError, match="in use"):
        ExportJournal(tmp_path / "journal")
    with pytest.raises(ExportError, match="cannot open"):
        ExportJournal(tmp_path / "nowhere" / "journal")


_EXPORT_UNTIL_KILLED = """
import sys, uuid
from qkdhw.export.journal import ExportJournal, export_key
from qkdhw.export.pkcs11 import Pkcs11Token
from qkdhw.secret import SecretBuffer
module, journal = sys.argv[1:]
with Pkcs11Token.open(module, "site-a", lambda: "1234-test") as token, ExportJournal(journal) as journal:
    token.import_key(str(uuid.uuid4()), "lab", SecretBuffer.random(32))
    print("ready", flush=True)
    while True:
        export_key(journal, token, key_id=str(uuid.uuid4()), label="lab", key=SecretBuffer.random(32))
"""


@pytest.mark.parametrize("delay_s", [0.05, 0.08, 0.13])
def test_kill_9_while_exporting(softhsm, tmp_path, delay_s):
    softhsm.make_token("site-a")
    command = [sys.executable, "-c", _EXPORT_UNTIL_KILLED, softhsm.module, str(tmp_path / "journal")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=20)
        child.stdout.close()
    with softhsm.open("site-a") as token, ExportJournal(tmp_path / "journal") as journal:
        done_before = {entry.key_id for entry in journal.entries(state="done")}
        recover(journal, token)
        held = {key.key_id for key in token.list_keys()}
        by_state = states(journal)
        assert done_before
        assert done_before <= held
        assert "intent" not in by_state.values()
        assert all((state == "done") == (key_id in held) for key_id, state in by_state.items())


_SCAN_OWN_MEMORY = """
import ctypes, json, mmap, sys, uuid
from qkdhw.export.pkcs11 import Pkcs11Token
from qkdhw.secret import SecretBuffer

window = mmap.mmap(-1, 1 << 24)  # the scanner's own copies lie here and in `needle`, and do not count
needle = SecretBuffer(32)

def span(buffer):
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return range(start, start + len(buffer))

own = [span(window), span(memoryview(needle))]

def count(masked):
    with memoryview(needle) as view:
        for i, b in enumerate(masked):
            view[i] = b ^ 0xA5
    found = 0
    with open("/proc/self/maps") as maps:
        regions = [line.split() for line in maps.read().splitlines()]
    with open("/proc/self/mem", "rb", buffering=0) as memory, memoryview(needle) as view:
        for start, end in ((int(x, 16) for x in r[0].split("-")) for r in regions if "rw" in r[1] and "[v" not in r[-1]):
            for at in range(start, end, len(window) - len(view)):
                memory.seek(at)
                with memoryview(window) as target:
                    size = memory.readinto(target[: min(len(target), end - at)])
                hit = window.find(view, 0, size)
                while hit >= 0:
                    found += not any(at + hit in r for r in own)
                    hit = window.find(view, hit + 1, size)
    return found

masked = []
with Pkcs11Token.open(sys.argv[1], "site-a", lambda: "1234-test") as token:
    for _ in range(20):
        with SecretBuffer.random(32) as key:
            masked.append(bytes(b ^ 0xA5 for b in memoryview(key)))
            token.import_key(str(uuid.uuid4()), "lab", key)
    left = sum(count(m) for m in masked)
    control = bytes(b ^ 0xA5 for b in masked[0])
    print(json.dumps([left, count(masked[0])]))
"""


def test_import_leaves_no_copy_of_the_key_in_memory(softhsm):
    softhsm.make_token("site-a")
    run = subprocess.run(
        [sys.executable, "-c", _SCAN_OWN_MEMORY, softhsm.module],
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | {"LD_BIND_NOW": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    left, control = json.loads(run.stdout or run.stderr)
    assert control >= 1
    assert left == 0
