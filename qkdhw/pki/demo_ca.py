"""A certificate authority for demonstrations and tests ONLY: its private key lies in a file and it revokes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qkdhw.pki.identity import SiteCredentials

_BEFORE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class DemoCa:
    """The demonstration CA: P-256 keys, no revocation, files in one folder.

    Attributes:
        folder: Where ca.pem and the sites' files are.
        certificate: The CA's certificate.
        private_key: The CA's private key.
    """

    folder: Path
    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    def issue(
        self, name: str, *, now: datetime | None = None, lifetime: timedelta = timedelta(days=7)
    ) -> SiteCredentials:
        """Make a key and a certificate for a site, good for client and server; return where they are.

        Args:
            name: DNS name of the site; files are called after it.
            now: Time of issue.
            lifetime: How long the certificate is valid.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.SubjectKeyIdentifier.from_public_key(self.private_key.public_key())
        certificate = (
            _builder(name, key, now or datetime.now(UTC), lifetime)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self.private_key, hashes.SHA256())
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        _write(certificate, key, *paths)
        return SiteCredentials(certificate=paths[0], private_key=paths[1], ca=self.folder / "ca.pem")


def create_demo_ca(folder: Path, *, now: datetime | None = None, lifetime: timedelta = timedelta(days=7)) -> DemoCa:
    """Make a new demonstration CA in a folder (made if need be), as ca.pem and ca.key.

    Args:
        folder: Where to put the files; private keys are readable by their owner only.
        now: Time of issue.
        lifetime: How long the CA's certificate is valid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = "qkdhw demonstration CA - not for production"
    certificate = (
        _builder(name, key, now or datetime.now(UTC), lifetime)
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(certificate, key, folder / "ca.pem", folder / "ca.key")
    return DemoCa(folder, certificate, key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(name: str, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, public: Path, private: Path) -> None:
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.unlink(missing_ok=True)
    fd = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(pem)
