"""Who a site is: its certificate files, and the check of the peer's chain and name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509 import verification

from qkdhw.errors import ConfigurationError, SessionRefusedError


@dataclass(frozen=True, slots=True)
class SiteCredentials:
    """Where a site's PEM files are.

    Attributes:
        certificate: The site's certificate, with intermediate certificates after it if there are any.
        private_key: Its private key.
        ca: The certificates of the CAs that the peer's chain may end in.
    """

    certificate: Path
    private_key: Path
    ca: Path


def verify_peer(
    chain: Sequence[x509.Certificate],
    *,
    credentials: SiteCredentials,
    peer_name: str,
    peer_is_server: bool,
    at: datetime,
) -> None:
    """Check the peer's chain, validity, extended key usage and DNS name. Revocation is not checked.

    Args:
        chain: The peer's certificate, then what else the peer sent.
        credentials: Holds the trusted CAs.
        peer_name: DNS name that must stand in the certificate's subjectAltName.
        peer_is_server: Whether it must be good for serverAuth or for clientAuth.
        at: The time to check at.

    Raises:
        SessionRefusedError: A check failed; the message says which.
        ConfigurationError: The CA file cannot be read.

    Source: RFC 5280 section 6; RFC 9525 section 6 (names).
    """
    try:
        roots = x509.load_pem_x509_certificates(credentials.ca.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read CA certificates from {credentials.ca}: {error}") from error
    policy = verification.PolicyBuilder().store(verification.Store(roots)).time(at)
    try:
        if peer_is_server:
            policy.build_server_verifier(x509.DNSName(peer_name)).verify(chain[0], list(chain[1:]))
            return
        verified = policy.build_client_verifier().verify(chain[0], list(chain[1:]))
    except verification.VerificationError as error:
        raise SessionRefusedError(
            f"certificate check: {chain[0].subject.rfc4514_string()!r} is not a good {peer_name!r}: {error}",
            remedy="Check the peer's name and its certificate's names, dates and issuer.",
        ) from error
    names = [subject.value for subject in verified.subjects or () if isinstance(subject, x509.DNSName)]
    if peer_name.lower() not in {name.lower() for name in names}:
        raise SessionRefusedError(
            f"certificate check: the peer is {', '.join(names) or 'nameless'}, not {peer_name!r}",
            remedy="Check the peer's name and the subjectAltName of its certificate.",
        )
