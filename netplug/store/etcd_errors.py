"""Errors of etcd and its connections: their cause, whether another endpoint may succeed, and what the user can do."""

import contextlib
import json
import os
import ssl
from typing import Any

from netplug.lean_aiohttp import aiohttp
from netplug.store.access import EtcdAccess
from netplug.store.api import StoreError

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


class Refused(StoreError):  # noqa: N818 - like the other kinds of `StoreError`
    """etcd answered with an error. `code`: of google.rpc.Code."""

    def __init__(self, text: str, code: int = _UNKNOWN) -> None:
        super().__init__(text)
        self.code = code


class AttemptError(Exception):
    """One attempt at one endpoint failed; the caller may try the next endpoint.

    `sent`: the request may have been executed. `permanent`: it will fail until somebody changes the set-up.
    """

    def __init__(self, reason: str, *, sent: bool = True, permanent: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.permanent = permanent


def read_answer(status: int, raw: bytes) -> Answer:
    """Parse the body of an answer. A body that is not JSON is not from etcd's JSON gateway."""
    with contextlib.suppress(ValueError):
        answer = json.loads(raw)
        if isinstance(answer, dict):
            return answer
    text = " ".join(raw[:200].decode(errors="replace").split())
    raise AttemptError(
        f"answers HTTP {status} {text!r}: this is not etcd 3.4 or later with its JSON gateway", permanent=True
    )


def error_of(answer: Answer) -> tuple[int, str]:
    """Return code and text of an error, also in a stream; an empty text means success. The form differs by version."""
    error = answer.get("error")
    if isinstance(error, dict):
        return int(error.get("grpc_code") or error.get("code") or _UNKNOWN), str(error.get("message") or error)
    text = error or (answer.get("message") if "code" in answer else None)
    return int(answer.get("code") or _UNKNOWN), str(text or "")


_NOT_CONNECTED = ("connection error", "connection closed", "closed network connection", "bad certificate")
"""What the gateway says of a failed connection to its own server, by where in the handshake it notices."""


def error_for(code: int, text: str, access: EtcdAccess) -> AttemptError | Refused:
    """Return the exception for an error that etcd answered."""
    if access.cert and any(part in text for part in _NOT_CONNECTED):
        # The gateway connects to its own server with the server's certificate. This may fail during a start.
        return AttemptError(
            "its JSON gateway cannot connect to it; if this persists: with --client-cert-auth the server's own"
            " certificate needs the extended key usage clientAuth"
        )
    if _is_transient(code, text):
        return AttemptError(f"etcd answers: {text.removeprefix('etcdserver: ')}")
    return Refused(f"etcd store {access} refuses: {_explained(text, access)}", code)


def is_stale(code: int, text: str) -> bool:
    """Return whether to log in again: the token has expired, or authentication was turned on."""
    return code == _UNAUTHENTICATED or any(
        part in text for part in ("revision in header is old", "invalid auth token", "user name is empty")
    )


def _is_transient(code: int, text: str) -> bool:
    """Return whether the request may succeed at another endpoint, or a moment later."""
    return (
        code in {_CANCELLED, _DEADLINE, _UNAVAILABLE}
        or "context deadline exceeded" in text
        or "context canceled" in text
        or (code == _EXHAUSTED and "too many requests" in text)
        or (code == _PRECONDITION and "not leader" in text)
    )


def _explained(text: str, access: EtcdAccess) -> str:
    """Add to an error of etcd what the user can do (api/v3rpc/rpctypes/error.go)."""
    plain = text.removeprefix("etcdserver: ")
    for part, words in (
        ("invalid user ID or password", f"user {access.user!r} or the password is wrong; check NETPLUG_ETCD_PASSWORD"),
        ("user name is empty", "it requires authentication; set NETPLUG_ETCD_USER and NETPLUG_ETCD_PASSWORD"),
        ("user name not found", f"user {access.user!r} does not exist"),
        ("permission denied", f"user {access.user!r} lacks permission; grant its role readwrite on netplug's prefix"),
        ("space exceeded", "its database is full; compact and defragment it, then 'etcdctl alarm disarm'"),
        ("request is too large", "the records of one transaction are too large (etcd: --max-request-bytes)"),
        ("larger than max", "the records of one transaction are too large (etcd: --max-request-bytes)"),
        ("too many operations", "too many operations in one transaction (etcd: --max-txn-ops)"),
    ):
        if part in text:
            return words
    return plain


def attempt_error(exc: Exception) -> AttemptError:
    """Translate an exception of aiohttp."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        reason = getattr(exc.certificate_error, "verify_message", "") or str(exc.certificate_error)
        return AttemptError(f"its certificate is refused: {reason}; check --etcd-ca", sent=False, permanent=True)
    if isinstance(exc, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        cause = exc.os_error if isinstance(exc, aiohttp.ClientConnectorSSLError) else exc
        return AttemptError(_tls_reason(cause), sent=False, permanent=True)
    if isinstance(getattr(exc, "os_error", exc.__cause__ or exc), ConnectionResetError | BrokenPipeError):
        return AttemptError(CLOSED)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return AttemptError(reason_of(exc.os_error), sent=False)
    if isinstance(exc, aiohttp.ClientOSError):
        if isinstance(exc.__cause__, ssl.SSLError):
            return AttemptError(_tls_reason(exc.__cause__), sent=False, permanent=True)
        return AttemptError(reason_of(exc))
    if isinstance(exc, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return AttemptError(CLOSED)
    return AttemptError(reason_of(exc))


def _tls_reason(exc: OSError) -> str:
    name = getattr(exc, "reason", "") or ""
    if "CERTIFICATE_REQUIRED" in name or "BAD_CERTIFICATE" in name or "UNKNOWN_CA" in name:
        return f"refuses our certificate ({name.lower().replace('_', ' ')}); check --etcd-cert and --etcd-key"
    if "WRONG_VERSION_NUMBER" in name or "RECORD_LAYER_FAILURE" in name:
        return "does not speak TLS; remove --etcd-ca"
    return f"tls fails: {name.lower().replace('_', ' ') or exc}"


def reason_of(exc: BaseException) -> str:
    """Return the text of an exception, to be used inside a sentence."""
    if isinstance(exc, OSError) and exc.errno and exc.errno > 0 and not isinstance(exc, ssl.SSLError):
        return os.strerror(exc.errno).lower()
    text = (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
    return text[:1].lower() + text[1:]
