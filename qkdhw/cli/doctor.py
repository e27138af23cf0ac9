"""`qkdhw doctor`: what is installed, what is missing and how to get it."""

from __future__ import annotations

import importlib
import importlib.util
import json as json_module
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Column, Table

import qkdhw._core
from qkdhw.cli.console import JsonOption, out, print_json
from qkdhw.drivers import installed_drivers, load_driver
from qkdhw.errors import ConfigurationError
from qkdhw.export.modules import find_modules

app = typer.Typer(help="Say what is installed, what is missing and how to get it.")

_TOKEN_TIMEOUT_S = 10.0
_MLOCK_NEEDED_BYTES = 1 << 20
_DISTRIBUTIONS = (
    # distribution, what for, remedy, whether the main job needs it
    ("numpy", "event arrays", "pip install qkdhw", True),
    ("cryptography", "key wrapping, certificates", "pip install qkdhw", True),
    ("pydantic", "file and message formats", "pip install qkdhw", True),
    ("pyserial", "serial units", "pip install 'qkdhw[serial]'", True),
    ("python-pkcs11", "export to an HSM", "pip install 'qkdhw[pkcs11]'", True),
    ("pyOpenSSL", "TLS with QKD keys", "pip install 'qkdhw[tls]'", True),
    ("h5py", "HDF5 event files", "pip install 'qkdhw[hdf5]'", False),
    ("pyarrow", "Parquet event files", "pip install 'qkdhw[parquet]'", False),
    ("matplotlib", "plots in reports", "pip install 'qkdhw[plot]'", False),
    ("zeroconf", "instruments found on the network", "pip install 'qkdhw[discovery]'", False),
)
_LINKS = (
    # distribution, extra, kind of address
    ("pyvisa", "visa", "visa"),
    ("pyvisa-py", "visa", "visa"),
    ("pyusb", "usb", "usb"),
    ("pyzmq", "zmq", "zmq"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        group: Where it belongs.
        name: What it is.
        ok: Whether it is as it should be.
        needed: Whether the main job, two units to keys in two HSMs and a TLS session, needs it.
        found: What was found.
        remedy: How to get it, or "".
    """

    group: str
    name: str
    ok: bool
    needed: bool
    found: str
    remedy: str = ""


@app.callback(invoke_without_command=True)
def doctor(json: JsonOption = False) -> None:
    """Say what is installed, what is missing and how to get it; exit code 1 if the main job cannot run."""
    checks = [check for part in _PARTS for check in part()]
    can_run = all(check.ok for check in checks if check.needed)
    if json:
        print_json({"main_job_can_run": can_run, "checks": [asdict(check) for check in checks]})
    else:
        _print_checks(checks)
        out.print(
            "The main job can run." if can_run else "[bold red]The main job cannot run:[/] see the marked lines.",
            soft_wrap=True,
        )
    raise typer.Exit(0 if can_run else 1)


def _print_checks(checks: list[Check]) -> None:
    table = Table("", *(Column(name, overflow="fold") for name in ("what", "found", "how to get it")))
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row("", f"[bold]{group}[/]", "", "")
        mark = "[green]ok[/]" if check.ok else "[bold red]missing[/]" if check.needed else "[yellow]optional[/]"
        table.add_row(mark, escape(check.name), escape(check.found), escape("" if check.ok else check.remedy))
    out.print(table)


def _check_python() -> Iterator[Check]:
    enough = sys.version_info >= (3, 11)
    yield Check("Python", "Python", enough, True, platform.python_version(), "install Python 3.11 or newer")
    for name, purpose, remedy, needed in _DISTRIBUTIONS:
        try:
            yield Check("Python", name, True, needed, f"{version(name)} ({purpose})")
        except PackageNotFoundError:
            yield Check("Python", name, False, needed, f"not installed ({purpose})", remedy)


def _check_links() -> Iterator[Check]:
    """Look for what some kinds of addresses need, and say which drivers that is for."""
    for distribution, extra, scheme in _LINKS:
        try:
            ok, found = True, version(distribution)
        except PackageNotFoundError:
            ok, found = False, "not installed"
        remedy = f"pip install 'qkdhw[{extra}]'"
        yield Check("links", distribution, ok, False, f"{found} ({scheme}: {_drivers_on(scheme)})", remedy)
    try:
        from usb.backend import libusb1
    except ImportError:
        return  # reported with pyusb
    there = libusb1.get_backend() is not None
    found = f"{'found' if there else 'not found'} (usb: {_drivers_on('usb')})"
    yield Check("links", "libusb", there, False, found, "apt-get install libusb-1.0-0")


def _drivers_on(scheme: str) -> str:
    names = []
    for name in installed_drivers():
        with suppress(ConfigurationError):  # reported with the units
            names += [name] if scheme in getattr(load_driver(name), "schemes", ()) else []
    return ", ".join(names) or "no driver"


def _check_kernels() -> Iterator[Check]:
    stubs = sorted(path.stem for folder in qkdhw._core.__path__ for path in Path(folder).glob("*.pyi"))
    missing = []
    for name in stubs:
        try:
            importlib.import_module(f"qkdhw._core.{name}")
        except ImportError:
            missing.append(name)
    found = f"{len(stubs) - len(missing)} of {len(stubs)}" + (f", missing: {', '.join(missing)}" if missing else "")
    remedy = "python setup.py build_ext --inplace (needs gcc and python3-dev)"
    yield Check("kernels", "compiled kernels", not missing, True, found, remedy)


def _check_openssl() -> Iterator[Check]:
    try:
        from cryptography.hazmat.backends.openssl.backend import backend
    except ImportError:
        return  # reported with the packages
    yield Check("TLS", "OpenSSL", True, True, backend.openssl_version_text())
    try:
        importlib.import_module("qkdhw.pki.openssl_psk")
    except ConfigurationError as error:
        yield Check("TLS", "TLS 1.3 with a PSK", False, True, str(error), error.remedy)
    else:
        yield Check("TLS", "TLS 1.3 with a PSK", True, True, "callbacks present")


def _check_tokens() -> Iterator[Check]:
    modules = find_modules()
    remedy = "apt-get install softhsm2, or the vendor's package"
    if not modules:
        yield Check("PKCS#11", "modules", False, True, "none", remedy)
    for module in modules:
        labels, problem = _token_labels(module.path)
        text = problem or "tokens: " + (", ".join(labels) or "none initialised")
        ok = not problem
        yield Check("PKCS#11", module.path, ok, len(modules) == 1, text, "see the module's own documentation")
    tool = shutil.which("softhsm2-util")
    yield Check("PKCS#11", "softhsm2-util (demo, tests)", tool is not None, True, tool or "not found", remedy)


def _token_labels(path: str) -> tuple[list[str], str]:
    """Ask a module in a process of its own: one that crashes shall not take the doctor along."""
    command = [sys.executable, "-m", "qkdhw", "hsm", "tokens", "--json", "--module", path]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TOKEN_TIMEOUT_S, check=False)
        if run.returncode:
            lines = run.stderr.strip().splitlines() or [f"ended with code {run.returncode}"]
            return [], next((line for line in lines if line.startswith("error:")), lines[-1])
        return [token["label"] for token in json_module.loads(run.stdout) if token["initialised"]], ""
    except subprocess.TimeoutExpired:
        return [], f"no answer within {_TOKEN_TIMEOUT_S:g} s"


def _check_units() -> Iterator[Check]:
    for point in sorted(entry_points(group="qkdhw.drivers"), key=lambda p: p.name):
        try:
            driver = point.load()
        except (ImportError, AttributeError) as error:
            yield Check("units", f"driver {point.name}", False, True, str(error), "reinstall its package")
            continue
        modules = getattr(driver, "module_names", ())  # of the vendor's library
        if modules and not any(map(_is_there, modules)):
            found = f"the vendor's Python module {modules[0]} is not installed"
            yield Check("units", f"driver {point.name}", False, False, found, driver.how_to_get)
        else:
            yield Check("units", f"driver {point.name}", True, True, point.value)
    if not entry_points(group="qkdhw.drivers"):
        yield Check("units", "drivers", False, True, "none: the package is not installed", "pip install -e .")
    try:
        from serial.tools import list_ports
    except ImportError:
        return  # reported with the packages
    ports = ", ".join(f"{port.device} ({port.description})" for port in list_ports.comports())
    yield Check("units", "serial ports", True, False, ports or "none")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the package that it is in
        return False


def _check_memory() -> Iterator[Check]:
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    enough = limit_bytes in {resource.RLIM_INFINITY, -1} or limit_bytes >= _MLOCK_NEEDED_BYTES
    text = "unlimited" if limit_bytes in {resource.RLIM_INFINITY, -1} else f"{limit_bytes >> 10} KiB"
    yield Check("machine", "locked memory for keys", enough, False, text, "ulimit -l 8192, or LimitMEMLOCK=")
    dump_bytes, _ = resource.getrlimit(resource.RLIMIT_CORE)
    remedy = "ulimit -c 0: a core file could hold what libraries keep of keys"
    yield Check("machine", "no core files", dump_bytes == 0, False, "off" if dump_bytes == 0 else "on", remedy)


_PARTS = (_check_python, _check_links, _check_kernels, _check_openssl, _check_tokens, _check_units, _check_memory)
