"""What goes wrong with an etcd: whose error it is, whether another endpoint may do better, and what to do about it."""

import contextlib
import json
import os
import ssl
from typing import Any

import aiohttp

from .access import EtcdAccess
from .api import StoreError

# google.rpc.Code
NOT_FOUND = 5
OUT_OF_RANGE = 11
DENIED = 7
_CANCELLED = 1
_UNKNOWN = 2
_DEADLINE = 4
_EXHAUSTED = 8
_PRECONDITION = 9
_UNAVAILABLE = 14
_UNAUTHENTICATED = 16

CLOSED = "closed the connection"
Answer = dict[str, Any]


class Refused(StoreError):  # noqa: N818 - as the protocol's own
    """The server has answered with an error. `code`: of google.rpc.Code."""

    def __init__(self, text: str, code: int = _UNKNOWN) -> None:
        super().__init__(text)
        self.code = code


class Trouble(Exception):  # noqa: N818 - one attempt at one endpoint, of which others are left
    """One endpoint has not served a request. `sent`: it may have been done; `lasting`: as long as nobody mends it."""

    def __init__(self, reason: str, *, sent: bool = True, lasting: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.lasting = lasting


def read_answer(status: int, raw: bytes) -> Answer:
    """Read a body. One that is not JSON comes from something else than the gateway."""
    with contextlib.suppress(ValueError):
        answer = json.loads(raw)
        if isinstance(answer, dict):
            return answer
    text = " ".join(raw[:200].decode(errors="replace").split())
    raise Trouble(
        f"answers HTTP {status} {text!r}: no etcd of version 3.4 or later with its JSON gateway there", lasting=True
    )


def error_of(answer: Answer) -> tuple[int, str]:
    """Return code and text of an error, also of one inside a stream; no text: none. Forms differ by version."""
    error = answer.get("error")
    if isinstance(error, dict):
        return int(error.get("grpc_code") or error.get("code") or _UNKNOWN), str(error.get("message") or error)
    text = error or (answer.get("message") if "code" in answer else None)
    return int(answer.get("code") or _UNKNOWN), str(text or "")


def fault(code: int, text: str, access: EtcdAccess) -> Trouble | Refused:
    """Return the exception for an error that a server has answered."""
    if access.cert and any(part in text for part in ("connection error", "connection closed", "bad certificate")):
        # The gateway shows the server's certificate to the server, as a client. At a start it may fail in passing.
        return Trouble(
            "its JSON gateway cannot connect to it; if that lasts: with --client-cert-auth the server's own certificate"
            " needs clientAuth among its extended key usages"
        )
    if _is_passing(code, text):
        return Trouble(f"etcd answers: {text.removeprefix('etcdserver: ')}")
    return Refused(f"etcd store {access} refuses: {_explained(text, access)}", code)


def is_stale(code: int, text: str) -> bool:
    """Tell whether to log in anew: a token has ended, or authentication was switched on."""
    return code == _UNAUTHENTICATED or any(
        part in text for part in ("revision in header is old", "invalid auth token", "user name is empty")
    )


def _is_passing(code: int, text: str) -> bool:
    """Tell what another endpoint, or the same one in a moment, may serve."""
    return (
        code in {_CANCELLED, _DEADLINE, _UNAVAILABLE}
        or "context deadline exceeded" in text
        or "context canceled" in text
        or (code == _EXHAUSTED and "too many requests" in text)
        or (code == _PRECONDITION and "not leader" in text)
    )


def _explained(text: str, access: EtcdAccess) -> str:
    """Say what to do about an error of etcd's (api/v3rpc/rpctypes/error.go)."""
    plain = text.removeprefix("etcdserver: ")
    for part, words in (
        ("invalid user ID or password", f"user {access.user!r} or the password is wrong; check NETPLUG_ETCD_PASSWORD"),
        ("user name is empty", "it asks for a user; give NETPLUG_ETCD_USER and NETPLUG_ETCD_PASSWORD"),
        ("user name not found", f"it knows no user {access.user!r}"),
        ("permission denied", f"user {access.user!r} may not do this; grant its role readwrite on netplug's prefix"),
        ("space exceeded", "its database is full; compact and defragment it, then 'etcdctl alarm disarm'"),
        ("request is too large", "the records of one transaction are too large (etcd: --max-request-bytes)"),
        ("larger than max", "the records of one transaction are too large (etcd: --max-request-bytes)"),
        ("too many operations", "too many operations in one transaction (etcd: --max-txn-ops)"),
    ):
        if part in text:
            return words
    return plain


def trouble_of(exc: Exception) -> Trouble:
    """Return what an exception of aiohttp's means for an attempt."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        reason = getattr(exc.certificate_error, "verify_message", "") or str(exc.certificate_error)
        return Trouble(f"its certificate is refused: {reason}; check --etcd-ca", sent=False, lasting=True)
    if isinstance(exc, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        cause = exc.os_error if isinstance(exc, aiohttp.ClientConnectorSSLError) else exc
        return Trouble(_tls_reason(cause), sent=False, lasting=True)
    if isinstance(getattr(exc, "os_error", exc.__cause__ or exc), ConnectionResetError | BrokenPipeError):
        return Trouble(CLOSED)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return Trouble(reason_of(exc.os_error), sent=False)
    if isinstance(exc, aiohttp.ClientOSError):
        if isinstance(exc.__cause__, ssl.SSLError):
            return Trouble(_tls_reason(exc.__cause__), sent=False, lasting=True)
        return Trouble(reason_of(exc))
    if isinstance(exc, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return Trouble(CLOSED)
    return Trouble(reason_of(exc))


def _tls_reason(exc: OSError) -> str:
    name = getattr(exc, "reason", "") or ""
    if "CERTIFICATE_REQUIRED" in name or "BAD_CERTIFICATE" in name or "UNKNOWN_CA" in name:
        return f"refuses our certificate ({name.lower().replace('_', ' ')}); check --etcd-cert and --etcd-key"
    if "WRONG_VERSION_NUMBER" in name or "RECORD_LAYER_FAILURE" in name:
        return "does not speak TLS: leave out --etcd-ca"
    return f"tls fails: {name.lower().replace('_', ' ') or exc}"


def reason_of(exc: BaseException) -> str:
    """Return the text of an exception, as part of a sentence."""
    if isinstance(exc, OSError) and exc.errno and exc.errno > 0 and not isinstance(exc, ssl.SSLError):
        return os.strerror(exc.errno).lower()
    text = (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
    return text[:1].lower() + text[1:]
