"""Where the Kubernetes API is, and how a process proves who it is: a kubeconfig, else the pod's service account.

What a kubeconfig may say here: a server, its CA (file or data), its name, `insecure-skip-tls-verify`; and of the user a
token, the file of a token, or a client certificate. Programs that fetch credentials (`exec`, `auth-provider`) are not
offered: in a cluster there is the service account.
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo_fast.config import KubernetesConfig
from dynamo_fast.errors import CannotConnect, InvalidConfig
from dynamo_fast.logs import get_logger
from dynamo_fast.net.tls import load_identity

__all__ = ["Access"]

logger = get_logger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Access:
    """One API server and the credentials for it."""

    server: str
    """Its URL, without a slash at the end."""
    tls: ssl.SSLContext | bool = True
    """True: as the system trusts, and for servers without TLS."""
    tls_name: str | None = None
    """The name that the server's certificate must have, if it is not the one in the URL."""
    token: str = field(default="", repr=False)
    token_file: Path | None = None

    @classmethod
    def find(cls, config: KubernetesConfig, account: Path = SERVICE_ACCOUNT) -> Access:
        """As `config` says. Raises InvalidConfig that names the file and the field."""
        file = Path(config.kubeconfig or Path.home() / ".kube" / "config")
        if config.kubeconfig or file.exists():
            return _from_kubeconfig(file)
        return _in_cluster(config, account)

    def headers(self) -> dict[str, str]:
        """The headers of one request. The file is read each time, because Kubernetes replaces its token every hour.

        Raises CannotConnect if the file cannot be read.
        """
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text(encoding="ascii").strip()
            except (OSError, ValueError) as error:
                raise CannotConnect(
                    f"no token for the Kubernetes API: {self.token_file} cannot be read: {error}"
                ) from None
        return {"Authorization": f"Bearer {token}"} if token else {}


def _in_cluster(config: KubernetesConfig, account: Path) -> Access:
    token, ca = account / "token", account / "ca.crt"
    if not config.service_host or not token.exists():
        missing = f"{token} does not exist" if config.service_host else "KUBERNETES_SERVICE_HOST is not set"
        raise InvalidConfig(
            f"no way to the Kubernetes API: no kubeconfig (KUBECONFIG, ~/.kube/config), and not in a pod with a service "
            f"account: {missing}"
        )
    host = f"[{config.service_host}]" if ":" in config.service_host else config.service_host
    try:
        tls = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfig(f"{ca} is not a file of PEM certificates: {error}") from None
    return Access(f"https://{host}:{config.service_port}", tls, token_file=token)


def _from_kubeconfig(file: Path) -> Access:
    try:
        import yaml
    except ImportError:
        raise InvalidConfig(f"{file} is read with PyYAML: pip install 'dynamo-fast[kubernetes]'") from None
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidConfig(f"the kubeconfig {file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InvalidConfig(f"the kubeconfig {file} is not a mapping of YAML")
    return _Kubeconfig(file, content).access()


class _Kubeconfig:
    """The current context of one file. Made and dropped by `_from_kubeconfig`."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self._file = file
        self._content = content

    def access(self) -> Access:
        context = self._named("contexts", "context", self._content.get("current-context"), "current-context")
        cluster = self._named("clusters", "cluster", context.get("cluster"), "the context's cluster")
        user = self._named("users", "user", context.get("user"), "the context's user")
        for key in ("exec", "auth-provider"):
            if key in user:
                raise self._wrong(
                    f"the user's {key!r} is not offered: give a token, a tokenFile or a client certificate, or run in a "
                    "pod with a service account"
                )
        server = cluster.get("server")
        if not isinstance(server, str) or not server.startswith(("http://", "https://")):
            raise self._wrong(f"the cluster's server {server!r} is not a URL, http:// or https://")
        token_file = user.get("tokenFile")
        if server.startswith("http://") and (token_file or user.get("token")):
            logger.warning("Kubernetes: the token goes to %s in plain text (%s)", server, self._file)
        return Access(
            server.rstrip("/"),
            self._tls(cluster, user) if server.startswith("https://") else True,
            cluster.get("tls-server-name"),
            str(user.get("token") or ""),
            self._path(token_file) if token_file else None,
        )

    def _named(self, plural: str, singular: str, name: Any, role: str) -> dict[str, Any]:
        for each in self._content.get(plural) or []:
            if isinstance(each, dict) and each.get("name") == name and isinstance(each.get(singular), dict):
                found: dict[str, Any] = each[singular]
                return found
        raise self._wrong(f"{role} is {name!r}, and {plural} has no such entry")

    def _tls(self, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
        try:
            ca = self._bytes(cluster, "certificate-authority")
            context = ssl.create_default_context(cadata=None if ca is None else ca.decode())
            if cluster.get("insecure-skip-tls-verify"):
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                logger.warning("Kubernetes: no certificate is verified (insecure-skip-tls-verify in %s)", self._file)
            certificate, key = self._bytes(user, "client-certificate"), self._bytes(user, "client-key")
            if (certificate is None) != (key is None):
                raise self._wrong("the user has one of client-certificate and client-key: it needs both, or neither")
            if certificate is not None and key is not None:
                load_identity(context, certificate, key)
        except (OSError, ValueError) as error:  # SSLError, binascii.Error and UnicodeDecodeError, too
            raise self._wrong(f"a certificate or a key cannot be read: {error}") from None
        return context

    def _bytes(self, fields: dict[str, Any], name: str) -> bytes | None:
        """The content of a field that has a file, or its data in base64."""
        if data := fields.get(f"{name}-data"):
            return base64.b64decode(data, validate=True)
        return self._path(fields[name]).read_bytes() if fields.get(name) else None

    def _path(self, name: Any) -> Path:
        return self._file.parent / str(name)

    def _wrong(self, what: str) -> InvalidConfig:
        return InvalidConfig(f"the kubeconfig {self._file}: {what}")
