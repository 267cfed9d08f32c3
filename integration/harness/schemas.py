"""Requests out of an OpenAPI schema, by schemathesis: well formed and ill formed ones, to a Unix socket.

Values at random seldom mean anything, so fields get words of the scene too: names of networks, addresses, namespaces.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode

SEED = int(os.environ.get("NETPLUG_HOSTILE_SEED", "17"))
EXAMPLES = int(os.environ.get("NETPLUG_HOSTILE_EXAMPLES", "5"))
"""Of each kind, for each operation."""
TIMEOUT_S = 20

Words = Mapping[str, Sequence[Any]]
"""Values that fields of a name may get."""
Ask = Callable[[], schemathesis.Response]
"""Sends the request, again at each call."""
Look = Callable[[schemathesis.Case, Ask, bool], None]
"""Sends a request, and judges the answer. The last: whether it was made to be ill formed."""


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("netplug", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


class _Pool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("netplug")
        self._path = path

    def _new_conn(self) -> Any:
        return _Connection(self._path)


class _Adapter(HTTPAdapter):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _Pool(path)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        return self._pool

    def request_url(self, request: Any, proxies: Any) -> Any:  # noqa: ARG002 - the base class names them
        return request.path_url


@contextmanager
def session(path: Path) -> Iterator[requests.Session]:
    """What sends requests for `http://netplug` to a Unix socket."""
    with requests.Session() as it:
        it.trust_env = False
        it.mount("http://netplug", _Adapter(path))
        yield it


def probe(
    asking: requests.Session,
    words: Words,
    look: Look,
    *,
    without: Sequence[str] = (),
    only: Sequence[str] = (),
    examples: int = EXAMPLES,
) -> int:
    """Ask each operation of the schema that the socket describes, and return how many requests there were.

    The same seed makes the same requests. `without`, `only`: labels such as `GET /v1/events/stream`. `examples`: of
    each kind, for each operation.

    Raises:
        ValueError: there is no operation of one of these labels.
    """
    count = 0
    document = asking.get("http://netplug/openapi.json").json()
    operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    if unknown := {*without, *only} - {it.label for it in operations}:
        raise ValueError(f"no operation is called {min(unknown)!r}")
    for operation in operations:
        if operation.label in only if only else operation.label not in without:
            takes = bool(operation.definition.raw.get("requestBody") or operation.definition.raw.get("parameters"))
            count += _ask(asking, operation, words, look, examples if takes else 1)
            count += _ask(asking, operation, words, look, examples, ill=True) if takes else 0
    return count


def _ask(
    asking: requests.Session, operation: Any, words: Words, look: Look, examples: int, *, ill: bool = False
) -> int:
    """Ask one operation, and return how often."""
    count = 0

    @seed(SEED)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(
        case=operation.as_strategy(GenerationMode.NEGATIVE if ill else GenerationMode.POSITIVE),
        data=st.data(),
    )
    def ask(case: schemathesis.Case, data: st.DataObject) -> None:
        nonlocal count
        if not ill:
            _speak(case, data, words)
        count += 1
        look(case, lambda: _sent(case, asking), ill)

    with suppress(Unsatisfiable):  # whatever comes is well formed
        ask()
    return count


def _sent(case: schemathesis.Case, asking: requests.Session) -> schemathesis.Response:
    """Send a request. Of a stream, which has no end, the answer is what comes before its first event."""
    if not case.operation.label.endswith("/stream"):
        return case.call(base_url="http://netplug", session=asking)
    answer = asking.request(**case.as_transport_kwargs(base_url="http://netplug"), stream=True)
    if answer.ok:
        answer._content = b""  # noqa: SLF001 - else it is read to its end
        answer.close()
    return schemathesis.Response.from_requests(answer, verify=True)


def _speak(case: schemathesis.Case, data: st.DataObject, words: Words) -> None:
    """Put words of the scene into a request."""

    def spoken(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: known(key, it) for key, it in value.items()}
        return [spoken(it) for it in value] if isinstance(value, list) else value

    def known(key: str, value: Any) -> Any:
        if key in words and data.draw(st.integers(0, 9)) < 8:
            return data.draw(st.sampled_from(words[key]))
        return spoken(value)

    for part in ("body", "query", "path_parameters"):
        if isinstance(value := getattr(case, part), dict | list):
            setattr(case, part, spoken(value))
