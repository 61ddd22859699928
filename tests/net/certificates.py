"""Certificates for tests: an authority, and identities that it has signed, as files."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme

from dynamo_fast.config import TlsConfig


class Authority:
    """A certificate authority whose files are in `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def identity(self, name: str = "process", *hosts: str, expires: datetime.datetime | None = None) -> tuple[str, str]:
        """The paths of a certificate, by default for the loopback, and of its key."""
        made = self._ca.issue_cert(*(hosts or ("127.0.0.1", "::1")), not_after=expires)
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(key))
        return str(certificate), str(key)


def tls(authority: Authority, identity: tuple[str, str]) -> TlsConfig:
    """A process with that identity that trusts the authority."""
    return TlsConfig(cert_path=identity[0], key_path=identity[1], ca_cert_path=str(authority.path))


def mutual(authority: Authority, identity: tuple[str, str]) -> TlsConfig:
    """The same, showing its identity and asking for that of others, too."""
    return TlsConfig(
        cert_path=identity[0],
        key_path=identity[1],
        client_ca_cert_path=str(authority.path),
        ca_cert_path=str(authority.path),
        client_cert_path=identity[0],
        client_key_path=identity[1],
    )


def variables(config: TlsConfig) -> dict[str, str]:
    """The environment that means the same."""
    values = {
        "CERT_PATH": config.cert_path,
        "KEY_PATH": config.key_path,
        "CLIENT_CA_CERT_PATH": config.client_ca_cert_path,
        "CA_CERT_PATH": config.ca_cert_path,
        "CLIENT_CERT_PATH": config.client_cert_path,
        "CLIENT_KEY_PATH": config.client_key_path,
        "SERVER_NAME": config.server_name,
    }
    return {f"DYN_TCP_TLS_{name}": value for name, value in values.items() if value}
