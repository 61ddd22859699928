"""The TLS of the connections to etcd."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

from dynamo_fast.config import EtcdConfig
from dynamo_fast.errors import InvalidConfig

__all__ = ["tls_context"]


def tls_context(config: EtcdConfig) -> ssl.SSLContext | bool:
    """As the settings say; True stands for the certificates that the system trusts. Raises InvalidConfig."""
    if not (config.ca and config.client_cert and config.client_key):
        return ssl.create_default_context(cadata=config.ca) if config.ca else True
    try:
        context = ssl.create_default_context(cadata=config.ca)
        with tempfile.TemporaryDirectory() as folder:  # 0700: OpenSSL reads a key from a file only
            certificate, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
            certificate.write_text(config.client_cert)
            key.write_text(config.client_key)
            context.load_cert_chain(certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidConfig(
            f"ETCD_AUTH_CA, ETCD_AUTH_CLIENT_CERT or ETCD_AUTH_CLIENT_KEY is not valid: expected PEM text ({error})"
        ) from None
    return context
