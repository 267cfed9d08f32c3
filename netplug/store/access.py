"""How to reach etcd: endpoints, TLS files, user. Data only; nothing here opens a connection."""

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import quote, unquote

SCHEME = "etcd://"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_USERINFO = re.compile(r"(?s)(?:(?<=://)|^(?![^@]*://)).*@")
_FORM = "not of the form etcd://host:port[,host:port]…"


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """Endpoints and credentials of one etcd cluster.

    Attributes:
        endpoints: "host:port" of each member; an IPv6 address in brackets.
        ca: the CA certificate (PEM) that signed the servers' certificates. If set, connections use TLS.
        cert, key: this host's client certificate and its key (PEM), for servers with `--client-cert-auth`.
        user: for etcd's authentication; empty without.
    """

    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> "EtcdAccess":
        """Parse `etcd://[user:password@]host:port[,host:port]…`. User and password are percent-encoded.

        >>> EtcdAccess.parse("etcd://10.0.0.1:2379,[fd00::2]:2379").endpoints
        ('10.0.0.1:2379', '[fd00::2]:2379')
        >>> EtcdAccess.parse("etcd://np:a%40b@db:2379").user
        'np'

        Raises:
            ValueError: the URL is ill-formed; the message says why, and never shows the password.
        """
        if not url.startswith(SCHEME):
            raise ValueError(f"is {_FORM}")
        userinfo, _, hosts = url.removeprefix(SCHEME).rpartition("@")
        user, _, password = userinfo.partition(":")
        if bool(userinfo) != bool(user and password):
            raise ValueError("has no user and password before the @: etcd://user:password@host:port")
        endpoints = tuple(hosts.removesuffix("/").split(","))
        for endpoint in endpoints:
            _check_endpoint(endpoint)
        if len(set(endpoints)) < len(endpoints):
            raise ValueError("names an endpoint twice")
        return cls(endpoints, user=unquote(user), password=unquote(password))

    @property
    def authenticated(self) -> bool:
        """Whether this host identifies itself to etcd, by a user or a client certificate."""
        return bool(self.user or self.cert)

    @property
    def urls(self) -> tuple[str, ...]:
        """The endpoints as HTTP URLs."""
        return tuple(f"{'https' if self.ca else 'http'}://{endpoint}" for endpoint in self.endpoints)

    def __str__(self) -> str:
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        return f"{SCHEME}{user}{','.join(self.endpoints)}"


def without_password(text: str) -> str:
    """Mask user and password in a store URL, also in an ill-formed one.

    >>> without_password("etcd://np:secret@db:2379")
    'etcd://***@db:2379'
    """
    return _USERINFO.sub("***@", text)


def _check_endpoint(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ValueError(f"has endpoint {endpoint!r}, {_FORM}")
    if host.startswith("["):
        try:
            IPv6Address(host.removeprefix("[").removesuffix("]"))
        except ValueError as exc:
            raise ValueError(f"has endpoint {endpoint!r}: {exc}") from exc
    elif not _HOST.fullmatch(host):
        raise ValueError(f"has endpoint {endpoint!r}, {_FORM}")
