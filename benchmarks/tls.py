"""The environments of processes that speak plain text, TLS and mutual TLS, for `router.py`. Needs the library trustme."""

from __future__ import annotations

from pathlib import Path

__all__ = ["modes"]

WHOLE_HANDSHAKES = """openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = system
[system]
NumTickets = 0
"""
"""A configuration of OpenSSL: servers issue no ticket with which a session could be resumed."""


def modes(folder: Path) -> dict[str, dict[str, str]]:
    """By name: the variables that a process needs. The certificates are in `folder`."""
    import trustme

    authority, paths = trustme.CA(), {name: folder / name for name in ("ca", "certificate", "key", "openssl")}
    made = authority.issue_cert("127.0.0.1", "::1")
    authority.cert_pem.write_to_path(str(paths["ca"]))
    paths["certificate"].write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(paths["key"]))
    paths["openssl"].write_text(WHOLE_HANDSHAKES, encoding="utf-8")
    ca, certificate, key = (str(paths[name]) for name in ("ca", "certificate", "key"))
    one = {"CERT_PATH": certificate, "KEY_PATH": key, "CA_CERT_PATH": ca}
    mutual = {**one, "CLIENT_CA_CERT_PATH": ca, "CLIENT_CERT_PATH": certificate, "CLIENT_KEY_PATH": key}
    return {
        "plain": {},
        "TLS": _variables(one),
        "mutual TLS": _variables(mutual),
        "mutual TLS, whole handshakes": {**_variables(mutual), "OPENSSL_CONF": str(paths["openssl"])},
    }


def _variables(values: dict[str, str]) -> dict[str, str]:
    return {f"DYN_TCP_TLS_{name}": value for name, value in values.items()}
