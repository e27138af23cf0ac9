"""What a site is told: one TOML file, every field checked before anything is opened."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qkdhw.errors import ConfigurationError

Role = Literal["transmitter", "receiver"]
TRANSMITTER_SETTINGS = ("pulse_rate_hz", "mean_photon_number", "intensity_probability", "key_basis_probability")

SIZE_LIMIT_BYTES = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UnitConfig(_Strict):
    """The QKD unit of this site.

    Attributes:
        name: Driver name, as `qkdhw devices list` shows it.
        url: Where the unit is.
        settings: Settings to apply, by the names of the unit's reference page.
    """

    name: str
    url: str
    settings: dict[str, Any] = {}


class ChannelConfig(_Strict):
    """The classical channel: one site listens, the other connects.

    Attributes:
        listen: "host:port" to listen on (port 0 takes a free one), or None.
        connect: "host:port" of the peer site, or None.
        timeout_s: Longest wait for a message of the peer.
        patience_s: Longest wait for the peer to come (back) before the site gives up.
    """

    listen: str | None = None
    connect: str | None = None
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    patience_s: Annotated[float, Field(gt=0, le=86400)] = 60.0

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.listen is None) == (self.connect is None):
            raise ValueError("give exactly one of listen and connect")
        return self


class ProtocolConfig(_Strict):
    """What both sites must have alike; a digest of it goes into the handshake.

    Attributes:
        link: Name of the link; part of the key metadata.
        pulse_rate_hz: Nominal pulse rate of the transmitter.
        sync_pulses: Pulses at the start of a run that are disclosed for clock alignment and never become key.
        block_pulses: Pulses of a block.
        blocks: Blocks to process before the site leaves; 0 is for ever.
        max_clock_ppm: Largest difference of the two units' clocks that alignment looks for.
        qber_limit: Fraction of wrong test bits above which a block is dropped.
        proof: Security proof that gives the key length.
        eps_sec: Secrecy parameter of a block.
        eps_cor: Correctness parameter of a block.
        authentication_bytes: Bytes of each block's key that refill the authentication account.
        keys_per_block_to_token: Keys of each block that both sites export to their tokens.
    """

    link: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    pulse_rate_hz: Annotated[int, Field(ge=1_000_000, le=5_000_000_000)]
    sync_pulses: Annotated[int, Field(ge=4096, le=1 << 24, multiple_of=2)] = 1 << 20
    block_pulses: Annotated[int, Field(ge=1 << 16, le=1 << 32, multiple_of=2)]
    blocks: Annotated[int, Field(ge=0)] = 0
    max_clock_ppm: Annotated[float, Field(gt=0, le=100)] = 20.0
    qber_limit: Annotated[float, Field(gt=0, lt=0.5)] = 0.11
    proof: str = "rigorous"
    eps_sec: Annotated[float, Field(gt=0, lt=1)] = 1e-9
    eps_cor: Annotated[float, Field(gt=0, lt=1)] = 1e-15
    authentication_bytes: Annotated[int, Field(ge=512, le=1 << 20, multiple_of=32)] = 4096
    keys_per_block_to_token: Annotated[int, Field(ge=0, le=1024)] = 0

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of these fields."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class DetectorConfig(_Strict):
    """Which detector hangs on a channel of the receiver's time tagger."""

    channel: Annotated[int, Field(ge=1, le=255)]
    basis: Literal["key", "test"]
    bit: Annotated[int, Field(ge=0, le=1)]


class MonitorsConfig(_Strict):
    """Monitors of the detectors: each block is judged, and none gives key while an alarm stands.

    Attributes:
        calibration: What is normal, as `qkdhw link calibrate` found it.
        alarms: Where alarms stand until they are cleared with `qkdhw link alarms`.
    """

    calibration: Path
    alarms: Path = Path("monitor-alarms.json")


class ReceiverConfig(_Strict):
    """What only the receiver's site needs.

    Attributes:
        wiring: One entry a detector.
        window_ps: Acceptance window around the expected arrival, full width.
        dead_time_ps: Software dead time: a click is dropped while any detector may still be dead.
        multi_click_seed: For reproducible emulation only: fixes the random choices for multiple clicks. Keys made
            with it say so in their metadata. Leave it out with real units.
        monitors: Monitors of the detectors; keys made without them say so in their metadata.
    """

    wiring: Annotated[tuple[DetectorConfig, ...], Field(min_length=4, max_length=4)]
    window_ps: Annotated[int, Field(gt=0)]
    dead_time_ps: Annotated[int, Field(ge=0)] = 0
    multi_click_seed: int | None = None
    monitors: MonitorsConfig | None = None

    @model_validator(mode="after")
    def _four_detectors(self) -> Self:
        outcomes = {(detector.basis, detector.bit) for detector in self.wiring}
        if len(outcomes) != 4 or len({detector.channel for detector in self.wiring}) != 4:
            raise ValueError("wiring must name one channel for each basis and bit value")
        return self


class KeysConfig(_Strict):
    """Where this site's key store is and what unwraps it."""

    store: Path
    kek_file: Path


class TokenConfig(_Strict):
    """The PKCS#11 token that keys are exported to."""

    module: Path
    token: str
    pin_file: Path


class TlsConfig(_Strict):
    """Identity for a TLS session with the peer site, from the organisation's PKI.

    Attributes:
        ca_file: Certificates of the CAs that are trusted, PEM.
        certificate_file: Own certificate, PEM.
        private_key_file: Own private key, PEM.
        peer_name: DNS name that the peer's certificate must carry.
        listen: "host:port" for the transmitter's site; the receiver's site connects to the same host.
    """

    ca_file: Path
    certificate_file: Path
    private_key_file: Path
    peer_name: str
    listen: str = "127.0.0.1:0"


class SiteConfig(_Strict):
    """One site of one link."""

    role: Role
    unit: UnitConfig
    channel: ChannelConfig
    protocol: ProtocolConfig
    keys: KeysConfig
    receiver: ReceiverConfig | None = None
    token: TokenConfig | None = None
    tls: TlsConfig | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [name for name in TRANSMITTER_SETTINGS if name not in self.unit.settings]
        if self.role == "transmitter" and missing:
            raise ValueError(f"the section [unit.settings] of a transmitter needs {', '.join(missing)}")
        if (self.role == "receiver") != (self.receiver is not None):
            raise ValueError("the section [receiver] is for the role receiver, and needed there")
        # The window must leave room between slots; see qkdhw.events.gating.Gate.
        if self.receiver is not None and self.receiver.window_ps * self.protocol.pulse_rate_hz >= 63e12 / 64:
            raise ValueError("receiver.window_ps must be shorter than the time between pulses")
        if self.protocol.keys_per_block_to_token and self.token is None:
            raise ValueError("protocol.keys_per_block_to_token needs the section [token]")
        if self.tls is not None and self.protocol.keys_per_block_to_token < 2:
            raise ValueError("the section [tls] needs protocol.keys_per_block_to_token of 2 or more")
        return self


def load_site(path: Path) -> SiteConfig:
    """Read and check a site's configuration. Relative paths in it start at its folder.

    Raises:
        ConfigurationError: Names the first wrong field and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", remedy="give the path of a site file"
        ) from error
    if len(text) > SIZE_LIMIT_BYTES:
        raise ConfigurationError(
            f"{path} is larger than {SIZE_LIMIT_BYTES} bytes", remedy="give the path of a site file"
        )
    try:
        data = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}", remedy="correct that line") from error
    try:
        config = SiteConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ConfigurationError(f"{path}: {place}: {first['msg']}", remedy=f"correct {place} in {path}") from error
    return config.model_copy(update=_anchored(config, path.parent))


def _anchored(config: SiteConfig, folder: Path) -> dict[str, BaseModel]:
    """Make every path of the configuration absolute."""
    update: dict[str, BaseModel] = {}
    for name in ("keys", "token", "tls"):
        section = getattr(config, name)
        if section is not None:
            update[name] = _in_folder(section, folder)
    if config.receiver is not None and config.receiver.monitors is not None:
        monitors = _in_folder(config.receiver.monitors, folder)
        update["receiver"] = config.receiver.model_copy(update={"monitors": monitors})
    return update


def _in_folder(section: BaseModel, folder: Path) -> BaseModel:
    paths = {key: folder / value for key, value in section if isinstance(value, Path)}
    return section.model_copy(update=paths)
