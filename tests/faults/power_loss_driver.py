"""Cut the power under a key store many times: python power_loss_driver.py DIRECTORY SYNCHRONOUS CASES, shim preloaded.

Prints one JSON object: how many cases ended in a crash, and what was wrong in how many of them.
"""

import ctypes
import json
import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

from test_store_kill import Worker, check_store, open_store, read_acknowledgements

from qkdhw.errors import KeyStoreError
from qkdhw.keys.account import install_start_key
from qkdhw.keys.kek import create_kek_file, read_kek_file
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.secret import SecretBuffer

SHIM = ctypes.CDLL(None)


def run_until_power_loss(directory: Path, synchronous: str, at: int, seed: int) -> list[list[str]] | None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            worker = Worker(directory, seed, writing)
            worker.store.database.connection.execute(f"PRAGMA synchronous = {synchronous}")
            SHIM.power_loss_arm(os.fsencode(directory), ctypes.c_long(at), seed % 2, seed)
            worker.work()
        finally:
            os._exit(1)
    os.close(writing)
    acknowledgements = read_acknowledgements(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 99:
        raise SystemExit(f"the worker ended with {status}")
    for name in ("keys.db-shm", "keys.db.lock"):  # memory and locks do not survive
        (directory / name).unlink(missing_ok=True)
    return acknowledgements


def main(base: Path, synchronous: str, cases: int) -> None:
    template = base / "template"
    template.mkdir()
    create_kek_file(template / "kek")
    with (
        read_kek_file(template / "kek") as kek,
        SqliteKeyStore.create(template / "keys.db", kek) as store,
        SecretBuffer.random(32 + 32 * 200) as start,
    ):
        install_start_key(store, start, role="transmitter")
    chance = random.Random(1)
    wrong = Counter()
    for case in range(cases):
        directory = base / str(case)
        shutil.copytree(template, directory)
        acknowledgements = run_until_power_loss(directory, synchronous, chance.randint(1, 250), case)
        try:
            with open_store(directory) as store:
                check_store(store, acknowledgements)
        except (AssertionError, KeyStoreError) as error:
            wrong[str(error).split("\n")[0]] += 1
        shutil.rmtree(directory)
    print(json.dumps({"crashes": cases, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
