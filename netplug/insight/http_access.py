"""Who may read the page.

On loopback: whoever is on this host. The Host header must then be a loopback name, so that no site can reach the page
by a name of its own that it points at 127.0.0.1 (DNS rebinding). Beyond loopback: who has the token, as
`Authorization: Bearer …`, or in a cookie, which `?token=…` once gives. What a browser sends for another site is
refused in any case (Fetch Metadata, W3C).
"""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs

from starlette.types import Scope

from netplug.errors import NetplugError

TOKEN_FILE = "http-token"  # noqa: S105 - a file's name
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[^:\[\]]{1,253})(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused, with its status."""

    status: int
    text: str


class Access:
    """Decides who may read. `token`: None on loopback."""

    def __init__(self, token: str | None, port: int) -> None:
        self._token = token
        self.cookie = f"netplug-{port}"  # browsers send a cookie to all ports of a host

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request is refused; None if it may read."""
        headers = headers_of(scope)
        if foreign(headers, link=scope["path"] == "/"):
            return Refusal(403, "requests of other sites are refused")
        if self._token is None:
            if loopback_name(headers.get("host", "")):
                return None
            return Refusal(403, "this page is for this host: ask for 127.0.0.1, [::1] or localhost")
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._same(given.strip()):
            return None
        if self._same(_cookie(headers.get("cookie", ""), self.cookie)):
            return None
        where = f"it is in the file {TOKEN_FILE} of the daemon's state directory"
        return Refusal(401, f"a token is needed: {where}; open /?token=… once, or send 'Authorization: Bearer …'")

    def admitted(self, scope: Scope) -> str | None:
        """Return the cookie to set, if the query has the token."""
        given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=16).get("token", [""])[0]
        if scope["path"] != "/" or not self._same(given):
            return None
        return f"{self.cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"

    def _same(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(), self._token.encode())


def headers_of(scope: Scope) -> Mapping[str, str]:
    """Return the headers of a request; of several with one name, the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def foreign(headers: Mapping[str, str], *, link: bool) -> bool:
    """Return whether a browser sends the request for a page of another site. `link`: such a page may lead here."""
    if headers.get("origin", "").partition("://")[2] not in {"", headers.get("host", "")}:
        return True
    if headers.get("sec-fetch-site", "none") in {"none", "same-origin"}:
        return False
    return not link or headers.get("sec-fetch-mode") != "navigate" or headers.get("sec-fetch-dest") != "document"


def loopback_name(host: str) -> bool:
    """Return whether a Host header (RFC 9110 §7.2) names loopback."""
    found = _HOST.fullmatch(host)
    if not found:
        return False
    name = found[1].strip("[]").lower().removesuffix(".")
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def token_in(state_dir: Path) -> str:
    """Return the token of a state directory; create it if there is none. It blocks.

    Raises:
        NetplugError: the file cannot be read or written, or has something else.
    """
    path = state_dir / TOKEN_FILE
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
            os.fchmod(file.fileno(), 0o600)
            token = file.read(1024).strip()
            if not token:
                token = secrets.token_urlsafe(32)
                file.write(token + "\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise NetplugError("unavailable", f"the token of the page in {path} cannot be read: {exc}") from exc
    if not _TOKEN.fullmatch(token):
        raise NetplugError("invalid", f"{path} has no token of the page", hint="delete it: another one is made")
    return token


def _cookie(header: str, name: str) -> str:
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return next((value for key, _, value in pairs if key == name), "")
