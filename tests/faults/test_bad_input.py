"""Bad input at the command line: one line that says what is wrong, one with the remedy, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qkdhw.export.return_codes import hsm_error
from qkdhw.keys.account import install_start_key
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState
from qkdhw.secret import SecretBuffer
from qkdhw_emulators.demo.staging import DemoOptions, StagedSite, softhsm_module, stage_sites, write_site_file

VECTORS = Path(__file__).parents[1] / "vectors" / "events"
OPTIONS = DemoOptions(seed=1, duration_s=2.2, loss_db=10.0, misalignment=0.01, eavesdropper="none")
CLOSED_PORT = "tcp://127.0.0.1:1"


def qkdhw(*arguments: object, limit_bytes: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        [sys.executable, "-m", "qkdhw", *map(str, arguments)],
        capture_output=True, text=True, timeout=90, check=False, preexec_fn=limit if limit_bytes else None,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str], error: str, text: str) -> None:
    """Exit code 1, and on standard error at the end exactly a typed line and a remedy."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    line, remedy = done.stderr.strip().splitlines()[-2:]
    assert re.match(rf"error: {error}: ", line), done.stderr
    assert text in line, line
    assert re.match(r"remedy: \S.{10,}", remedy), done.stderr
    assert done.stdout == ""


def digests(folder: Path) -> dict[str, str]:
    """What is in a folder, but for locks and for where SoftHSM counts logins."""
    volatile = (".lock", "-shm", "token.object")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(volatile)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- units ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "url", "error", "text"),
    [
        ("acme-rx9", CLOSED_PORT, "ConfigurationError", "no driver is called 'acme-rx9'"),
        ("generic-tx", CLOSED_PORT, "TransportError", "127.0.0.1:1 cannot be reached"),
        ("sfifteen-tdc1", "serial:///dev/no-such-port", "TransportError", "/dev/no-such-port cannot be opened"),
        ("sfifteen-tdc1", "/dev/ttyACM0", "ConfigurationError", "no known scheme"),
        ("generic-tx", "tcp://127.0.0.1", "ConfigurationError", "port"),
        ("generic-tx", "tcp://a..b:5", "ConfigurationError", "'a..b' cannot be a host name"),
        ("generic-tx", "tcp://.:5", "ConfigurationError", "'.' cannot be a host name"),
        ("idq-id900", f"zmq://{'a' * 70}:5", "ConfigurationError", "cannot be a host name"),
        ("oz-epc400", "rfc2217://a..b:5", "ConfigurationError", "'a..b' cannot be a host name"),
        ("srs-dg645", "visa://TCPIP::a..b::5::SOCKET", "ConfigurationError", "'a..b' cannot be a host name"),
        ("srs-dg645", "visa://TCPIP::a..b::hislip0::INSTR", "ConfigurationError", "'a..b' cannot be a host name"),
        ("oz-epc400", f"serial:///dev/none?baud={'9' * 20}", "ConfigurationError", "baud is not a number"),
        ("oz-epc400", f"serial:///dev/none?baud={'9' * 5000}", "ConfigurationError", "baud is not a number"),
    ],
)
def test_wrong_unit_or_address(name: str, url: str, error: str, text: str) -> None:
    assert_refused(qkdhw("devices", "info", name, url), error, text)


@pytest.mark.parametrize(("name", "transport"), [("sfifteen-tdc1", "pty"), ("generic-tx", "tcp")])
@pytest.mark.parametrize(("fault", "error"), [("garbage", "WireFormatError"), ("silent", "TransportTimeoutError")])
def test_a_unit_that_answers_garbage_or_nothing(name: str, transport: str, fault: str, error: str) -> None:
    command = [
        sys.executable,
        "-m",
        "qkdhw",
        "devices",
        "emulate",
        name,
        "--on",
        transport,
        "--fault",
        fault,
        "--json",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as unit:
        assert unit.stdin is not None
        assert unit.stdout is not None
        url = json.loads(unit.stdout.readline())[name]
        assert_refused(qkdhw("devices", "info", name, url, "--timeout", 0.5), error, "")
        unit.stdin.close()


def test_a_listener_that_is_no_unit(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert_refused(
            qkdhw("devices", "info", "generic-tx", url, "--timeout", 0.5), "TransportTimeoutError", "0 bytes"
        )


# --- files of events -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["t2.ptu", "t3.ptu", "binary.qutag", "tdc2.a1.ts"])
def test_a_cut_capture_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    whole = (VECTORS / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[:-3])
    for arguments in (("info", cut), ("convert", cut, tmp_path / "out.h5")):
        assert_refused(qkdhw("events", *arguments), "EventFormatError", name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_old_output_survives_a_failed_conversion(tmp_path: Path) -> None:
    cut, out = tmp_path / "cut.ptu", tmp_path / "out.csv"
    cut.write_bytes((VECTORS / "t2.ptu").read_bytes()[:-3])
    out.write_text("what was here before")
    assert_refused(qkdhw("events", "convert", cut, out, "--force"), "EventFormatError", "cut.ptu")
    assert out.read_text() == "what was here before"


# --- a site ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> StagedSite:
    site = stage_sites(tmp_path_factory.mktemp("sites"))["transmitter"]
    write_site_file(site, OPTIONS, unit_url=CLOSED_PORT, channel='listen = "127.0.0.1:0"')
    return site


@pytest.fixture
def site(staged: StagedSite, tmp_path: Path) -> StagedSite:
    """A copy of a whole site that has never run, with a token of its own."""
    folder = tmp_path / "site"
    shutil.copytree(staged.folder, folder)
    config = folder / "softhsm2.conf"
    config.write_text(config.read_text().replace(str(staged.folder), str(folder)))
    return StagedSite(staged.role, folder, {"SOFTHSM2_CONF": str(config)})


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return apply


def write_private(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


SITE_FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no site file": (lambda f: (f / "site.toml").unlink(), "ConfigurationError", "cannot read"),
    "no TOML": (write_private("site.toml", b"role = "), "ConfigurationError", "is not TOML"),
    "no text": (write_private("site.toml", b"\xff\xfe\x00"), "ConfigurationError", "is not TOML"),
    "wrong role": (change("site.toml", '"transmitter"', '"sender"'), "ConfigurationError", "role: Input should be"),
    "unknown field": (change("site.toml", "[keys]", "[keys]\ncolour = 1"), "ConfigurationError", "keys.colour"),
    "missing field": (change("site.toml", 'kek_file = "kek"', ""), "ConfigurationError", "keys.kek_file"),
    "number out of range": (change("site.toml", "blocks = 1", "blocks = -1"), "ConfigurationError", "protocol.blocks"),
    "wrong KEK": (write_private("kek", bytes(32)), "KeyStoreError", "the KEK is not the one"),
    "short KEK": (write_private("kek", bytes(31)), "KeyStoreError", "has 31 bytes, not 32"),
    "open KEK": (lambda f: (f / "kek").chmod(0o644), "KeyStoreError", "others can get at it"),
    "no KEK": (lambda f: (f / "kek").unlink(), "KeyStoreError", "cannot read KEK file"),
    "no store": (lambda f: (f / "keys.sqlite").unlink(), "KeyStoreError", "there is no key store"),
    "no database": (write_private("keys.sqlite", b"x" * 9000), "KeyStoreError", "not a database"),
    "wrong PIN": (write_private("pin", b"0000-wrong"), "HsmError", "CKR_PIN_INCORRECT"),
    "no PIN file": (lambda f: (f / "pin").unlink(), "ConfigurationError", "cannot read PIN file"),
    "no such token": (change("site.toml", 'token = "qkd"', 'token = "none"'), "HsmError", "no token with label 'none'"),
    "tokens gone": (lambda f: shutil.rmtree(f / "tokens"), "HsmError", "cannot load PKCS#11 module"),
    "no module": (change("site.toml", 'module = "', 'module = "/none'), "HsmError", "does not exist"),
    "unknown driver": (change("site.toml", '"generic-tx"', '"acme"'), "ConfigurationError", "no driver is called 'acme'"),
    "unit is off": (lambda _: None, "TransportError", "127.0.0.1:1 cannot be reached"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SITE_FAULTS)
def test_a_site_that_cannot_start(fault: str, site: StagedSite) -> None:
    damage, error, text = SITE_FAULTS[fault]
    damage(site.folder)
    before = digests(site.folder)
    done = qkdhw("link", "run", site.folder / "site.toml", **site.environment)
    assert_refused(done, error, text)
    after = digests(site.folder)
    journal = after.pop("export.journal", None)
    before.pop("export.journal", None)
    assert after == before
    assert journal in {None, hashlib.sha256(b"").hexdigest()}


def test_wrong_or_missing_pin_and_token_for_hsm_keys(site: StagedSite) -> None:
    base = ("hsm", "keys", "--module", softhsm_module(), "--token")
    wrong = qkdhw(*base, "qkd", "--pin-env", "PIN", PIN="0000-wrong", **site.environment)
    assert_refused(wrong, "HsmError", "CKR_PIN_INCORRECT")
    assert_refused(qkdhw(*base, "none", "--pin-env", "PIN", PIN="1", **site.environment), "HsmError", "'none'")
    pin_file = ("--pin-file", site.folder / "no-pin")
    assert_refused(qkdhw(*base, "qkd", *pin_file, **site.environment), "ConfigurationError", "cannot read PIN file")
    right = qkdhw(*base, "qkd", "--pin-file", site.folder / "pin", "--json", **site.environment)
    assert (right.returncode, json.loads(right.stdout)) == (0, [])


def test_a_locked_token_is_told_as_such() -> None:
    """SoftHSM never locks a PIN, so this is the mapping alone."""
    import pkcs11

    error = hsm_error(pkcs11.PinLocked(), what="log in to token 'qkd'")
    assert error.return_code == "CKR_PIN_LOCKED"
    assert "security officer" in error.remedy


# --- a store in use ----------------------------------------------------------------------------------------------------
def test_a_second_process_on_the_same_store(site: StagedSite) -> None:
    store = site.folder / "keys.sqlite"
    kek = (site.folder / "kek").read_bytes()
    with SqliteKeyStore.open(store, secret(kek)):
        run = qkdhw("link", "run", site.folder / "site.toml", **site.environment)
        assert_refused(run, "KeyStoreError", "is open for writing in another process")
        burn = qkdhw("keys", "burn", str(uuid.uuid4()), "--store", store, "--reason", "test")
        assert_refused(burn, "KeyStoreError", "is open for writing in another process")
        look = qkdhw("keys", "status", "--store", store, "--json")
        assert json.loads(look.stdout)["authentication"]["active_segments"] == 1


def secret(value: bytes) -> SecretBuffer:
    buffer = SecretBuffer(len(value))
    buffer.copy_from(value)
    return buffer


# --- a full disk -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Disk:
    """A folder on which nothing more can be written between `fill` and `free`."""

    folder: Path
    is_small: bool

    @contextmanager
    def full(self) -> Iterator[dict[str, int]]:
        """Yields what `qkdhw` must be called with."""
        if not self.is_small:
            yield {"limit_bytes": 1}
            return
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        try:
            yield {}
        finally:
            filler.unlink()

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"filler"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 1 MiB where mounting is allowed, otherwise a limit on the size of files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "qkdhw-test", str(folder)]
    is_small = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, is_small)
    finally:
        if is_small:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("ending", ["ptu", "h5", "parquet", "csv", "qutag"])
def test_converting_onto_a_full_disk(ending: str, disk: Disk) -> None:
    with disk.full() as limits:
        done = qkdhw("events", "convert", VECTORS / "t2.ptu", disk.folder / f"x.{ending}", **limits)
        assert_refused(done, "EventError", "cannot write")
        assert disk.names() == set()


def test_a_key_store_on_a_full_disk(disk: Disk) -> None:
    path, key_id = disk.folder / "keys.sqlite", str(uuid.uuid4())
    with (
        SecretBuffer.random(32) as kek,
        SecretBuffer.random(64) as start,
        SecretBuffer.random(32) as key,
        SqliteKeyStore.create(path, kek) as store,
    ):
        install_start_key(store, start, role="transmitter")
        store.put(key_id=key_id, link="east", block_id=1, key=key, metadata={})
        store.activate([key_id])
    before = path.read_bytes()
    burn = ("keys", "burn", key_id, "--store", path, "--reason", "test")
    with disk.full() as limits:
        assert_refused(qkdhw(*burn, **limits), "KeyStoreError", "key store")
        assert path.read_bytes() == before
    with SqliteKeyStore.open(path, None, read_only=True) as store:
        store.verify_audit()
        assert store.record(key_id).state is KeyState.READY
    assert qkdhw(*burn).returncode == 0


def test_staging_a_demo_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    (disk.folder / "kept").mkdir()
    with disk.full() as limits:
        done = qkdhw("demo", "--keep", disk.folder / "kept", "--report", tmp_path / "report.html", **limits)
    assert_refused_after_progress(done)
    assert not (tmp_path / "report.html").exists()


def test_a_demo_report_onto_a_full_disk(disk: Disk) -> None:
    if not disk.is_small:
        pytest.skip("a limit on file sizes would stop the sites before the report")
    with disk.full():
        done = qkdhw("demo", "--loss-db", 60, "--duration", 2, "--json", "--report", disk.folder / "report.html")
        assert json.loads(done.stdout)["outcome"] == "no key"  # the run is not lost with its report
        assert_refused_after_progress(done)
        assert "error: ConfigurationError: cannot write the report" in done.stderr
        assert disk.names() == set()


def test_a_demo_on_a_disk_that_runs_full(disk: Disk, tmp_path: Path) -> None:
    if not disk.is_small:
        pytest.skip("a limit on file sizes does not count what all files hold")
    done = qkdhw("demo", "--duration", 2, "--keep", disk.folder / "kept", "--report", tmp_path / "report.html")
    assert_refused_after_progress(done)
    assert "No space left" in done.stderr
    assert list(tmp_path.glob("report*")) == []


def assert_refused_after_progress(done: subprocess.CompletedProcess[str]) -> None:
    assert_refused(subprocess.CompletedProcess(done.args, done.returncode, "", done.stderr), r"\w+Error", "")


# --- places for the demonstration ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--report", "nowhere/report.html"), "no folder nowhere"),
        (("--keep", __file__), "is not an empty folder"),
        (("--keep", Path(__file__).parent), "is not an empty folder"),
        (("--keep", "/dev/null/run"), "/dev/null/run"),
    ],
)
def test_a_demo_that_has_no_place(arguments: tuple[object, ...], text: str, tmp_path: Path) -> None:
    place = () if "--report" in arguments else ("--report", tmp_path / "report.html")
    assert_refused(qkdhw("demo", *arguments, *place), "ConfigurationError", text)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "report.html.part").mkdir()
    done = qkdhw("demo", "--report", tmp_path / "report.html", "--keep", tmp_path / "kept")
    assert_refused(done, "ConfigurationError", "cannot write the report")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html.part"]


def test_a_demo_without_matplotlib_fails_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('matplotlib')\n")
    kept = tmp_path / "kept"
    done = qkdhw("demo", "--report", tmp_path / "report.html", "--keep", kept, PYTHONPATH=str(tmp_path))
    assert_refused(done, "ConfigurationError", "matplotlib is not installed")
    assert 'pip install "qkdhw[plot]"' in done.stderr
    assert not kept.exists()


def test_a_demo_without_softhsm(tmp_path: Path) -> None:
    done = qkdhw("demo", "--report", tmp_path / "report.html", PATH="/nowhere")
    assert_refused_after_progress(done)
    assert "SoftHSM is not installed" in done.stderr
    assert "apt-get install softhsm2" in done.stderr
