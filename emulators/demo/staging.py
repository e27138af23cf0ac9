"""What an installer does once for two sites: key stores with a start key, tokens, certificates, site files."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qkdhw.errors import ConfigurationError, HsmError
from qkdhw.export.modules import find_modules
from qkdhw.keys.account import Role, install_start_key
from qkdhw.keys.kek import create_kek_file, read_kek_file
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.pki.demo_ca import create_demo_ca
from qkdhw.secret import SecretBuffer

START_KEY_BYTES = 64 * 1024
PULSE_RATE_HZ = 20_000_000
SITES: dict[Role, str] = {"transmitter": "alice.qkd.test", "receiver": "bob.qkd.test"}
OTHER: dict[Role, Role] = {"transmitter": "receiver", "receiver": "transmitter"}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `qkdhw demo` can be told; the names are those of the options.

    Attributes:
        seed: Seed of the emulated link.
        duration_s: Seconds of link time to emulate.
        loss_db: Loss of the fibre.
        misalignment: Fraction of photons that take the wrong port in the right basis.
        eavesdropper: "none" or "intercept-resend".
        pulse_rate_hz: Pulse rate of the transmitter.
        block_pulses: Pulses of a block.
        keys_to_token: Keys of each block that are exported to the tokens.
        sync_pulses: Pulses disclosed for clock alignment.
        blocks: Blocks to process; 0 is for ever; None is as many as fit into the duration.
        tls: Whether the sites open a TLS session at the end.
    """

    seed: int
    duration_s: float
    loss_db: float
    misalignment: float
    eavesdropper: str
    pulse_rate_hz: int = PULSE_RATE_HZ
    block_pulses: int = 40_000_000
    keys_to_token: int = 8
    sync_pulses: int = 1 << 20
    blocks: int | None = None
    tls: bool = True

    @property
    def block_count(self) -> int:
        """Blocks to process; by default whole blocks that fit into the duration, at least one."""
        if self.blocks is not None:
            return self.blocks
        return max(1, round((self.duration_s * self.pulse_rate_hz - self.sync_pulses) / self.block_pulses))

    def emulated(self) -> dict[str, Any]:
        """What these options come to: whole blocks, and the link time that they and the sync frame take."""
        pulses = self.sync_pulses + self.block_count * self.block_pulses
        return asdict(self) | {
            "blocks": self.block_count,
            "block_duration_s": self.block_pulses / self.pulse_rate_hz,
            "duration_s": pulses / self.pulse_rate_hz,
        }


@dataclass(frozen=True, slots=True)
class StagedSite:
    """One site's folder, ready to run.

    Attributes:
        role: "transmitter" or "receiver".
        folder: Everything that belongs to the site.
        environment: What its process needs in its environment.
    """

    role: Role
    folder: Path
    environment: dict[str, str]


def stage_sites(folder: Path) -> dict[Role, StagedSite]:
    """Make both sites' stores, tokens and identities under `folder`; the start key is in memory only.

    Raises:
        ConfigurationError: SoftHSM is not installed.
        HsmError: A token cannot be initialised.
    """
    sites = {role: StagedSite(role, folder / role, {}) for role in SITES}
    ca = create_demo_ca(folder / "ca")
    with SecretBuffer.random(START_KEY_BYTES) as start_key:
        for role, site in sites.items():
            site.folder.mkdir(mode=0o700, parents=True)
            create_kek_file(site.folder / "kek")
            with (
                read_kek_file(site.folder / "kek") as kek,
                SqliteKeyStore.create(site.folder / "keys.sqlite", kek) as store,
            ):
                install_start_key(store, start_key, role=role)
            identity = ca.issue(SITES[role])
            shutil.copyfile(identity.ca, site.folder / "ca.pem")
            identity.certificate.rename(site.folder / "site.pem")
            identity.private_key.rename(site.folder / "site.key")
            site.environment["SOFTHSM2_CONF"] = str(_create_token(site.folder))
    return sites


def softhsm_module() -> Path:
    """Find SoftHSM's PKCS#11 module.

    Raises:
        ConfigurationError: It is not installed.
    """
    found = [module for module in find_modules() if "softhsm" in module.path.lower()]
    if not found or shutil.which("softhsm2-util") is None:
        raise ConfigurationError(
            "SoftHSM is not installed; the demonstration keeps its keys in two SoftHSM tokens",
            remedy="apt-get install softhsm2",
        )
    return Path(found[0].path)


def _create_token(folder: Path) -> Path:
    """Initialise a token of the site's own; returns the SoftHSM configuration file."""
    softhsm_module()
    (folder / "tokens").mkdir(mode=0o700)
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n")
    pin = secrets.token_hex(8)
    with open(os.open(folder / "pin", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(pin)
    # softhsm2-util takes PINs from its command line only; the token is a throw-away one of this demonstration.
    command = ["softhsm2-util", "--init-token", "--free", "--label", "qkd", "--pin", pin, "--so-pin", pin]
    done = subprocess.run(
        command, env=os.environ | {"SOFTHSM2_CONF": str(config)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HsmError(f"softhsm2-util could not initialise a token: {done.stderr.strip()}")
    return config


def write_site_file(site: StagedSite, options: DemoOptions, *, unit_url: str, channel: str) -> Path:
    """Write the TOML that `qkdhw link run` takes; `channel` is the TOML line for the classical channel."""
    lines = [
        f'role = "{site.role}"',
        "[unit]",
        f'name = "{"generic-tx" if site.role == "transmitter" else "sfifteen-tdc1"}"',
        f'url = "{unit_url}"',
    ]
    if site.role == "transmitter":
        lines += [
            "[unit.settings]",
            f"pulse_rate_hz = {options.pulse_rate_hz}",
            "mean_photon_number = [0.58, 0.17, 0.001]",
            "intensity_probability = [0.65, 0.29, 0.06]",
            "key_basis_probability = 0.81",
        ]
    lines += [
        "[channel]",
        channel,
        "[protocol]",
        'link = "demo"',
        f"pulse_rate_hz = {options.pulse_rate_hz}",
        f"sync_pulses = {options.sync_pulses}",
        f"block_pulses = {options.block_pulses}",
        f"blocks = {options.block_count}",
        f"keys_per_block_to_token = {options.keys_to_token}",
        "[keys]",
        'store = "keys.sqlite"',
        'kek_file = "kek"',
        "[token]",
        f'module = "{softhsm_module()}"',
        'token = "qkd"',
        'pin_file = "pin"',
    ]
    if options.tls:
        lines += [
            "[tls]",
            'ca_file = "ca.pem"',
            'certificate_file = "site.pem"',
            'private_key_file = "site.key"',
            f'peer_name = "{SITES[OTHER[site.role]]}"',
        ]
    if site.role == "receiver":
        wiring = ", ".join(
            f'{{channel = {channel_number}, basis = "{basis}", bit = {bit}}}'
            for channel_number, basis, bit in ((1, "key", 0), (2, "key", 1), (3, "test", 0), (4, "test", 1))
        )
        lines += [
            "[receiver]",
            f"wiring = [{wiring}]",
            "window_ps = 10000",
            "dead_time_ps = 50000",
            f"multi_click_seed = {options.seed}",
        ]
    path = site.folder / "site.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
