"""A certificate of our own for HTTPS on the local network: browsers give microphone and camera to nothing less."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omni_app.errors import EngineUnavailable
from omni_app.settings import LOOPBACK

if TYPE_CHECKING:
    from cryptography import x509

VALID_DAYS = 397
"""Browsers of Apple take none that is valid for longer than 398 days."""
RENEW_DAYS = 30


@dataclass(frozen=True, slots=True)
class Certificate:
    certificate: Path
    key: Path
    names: tuple[str, ...]
    fingerprint: str
    """SHA-256, as browsers show it."""

    def explanation(self, port: int) -> str:
        """What to do with it, for the person who started the app."""
        reached = "\n".join(f"  https://{_bracketed(name)}:{port}" for name in self.names if name not in LOOPBACK)
        return (
            "HTTPS with a certificate made on this machine, so that microphone and camera work from other devices at\n"
            f"{reached}\n"
            "Each browser warns once that nobody vouches for it. Compare the fingerprint that it shows with\n"
            f"  {self.fingerprint}\n"
            "and go on only if they are the same: then you talk to this machine and nobody in between can listen. To\n"
            f"have no warning, install {self.certificate} as a trusted certificate on that device."
        )


def ensure(folder: Path, names: Sequence[str] | None = None) -> Certificate:
    """The certificate kept in `folder`; a new one when there is none, it ends soon, or this machine's names changed.

    Raises EngineUnavailable when the folder cannot be written.
    """
    wanted = tuple(names or own_names())
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    try:
        if not (key.is_file() and _serves(certificate, wanted)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(certificate, key, wanted)
        return Certificate(certificate, key, wanted, _fingerprint(certificate))
    except OSError as error:
        raise EngineUnavailable(f"No certificate could be kept in {folder}. Choose another --data-dir.") from error


def own_names() -> tuple[str, ...]:
    """What this machine is called, by itself and on its local network."""
    host = socket.gethostname()
    names = [*LOOPBACK, host, *([] if "." in host else [f"{host}.local"]), *_addresses(host)]
    return tuple(dict.fromkeys(names))


def _addresses(host: str) -> list[str]:
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
            found.append(probe.getsockname()[0])
        except OSError:
            return found
    return [address for address in found if "%" not in address]


def _serves(certificate: Path, names: Sequence[str]) -> bool:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    spoken = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {str(name.value) for name in spoken}
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=RENEW_DAYS)
    return set(names) <= known and found.not_valid_after_utc > soon


def _make(certificate: Path, key: Path, names: Sequence[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Omni on this machine")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of other devices differ
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    key.unlink(missing_ok=True)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _fingerprint(certificate: Path) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    return x509.load_pem_x509_certificate(certificate.read_bytes()).fingerprint(hashes.SHA256()).hex(":").upper()


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name
