"""CHECK and STATUS: what the engine finds wrong, with the codes of the specification."""

from netplug.engine import Engine
from netplug.engine.readiness import NotReadyError
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.errors import NetplugError
from netplug.frontends.cni.config import Wanted
from netplug.frontends.cni.result import Result
from netplug.frontends.cni.wire import CniError, Code, Request


async def refuse_drift(
    engine: Engine, request: Request, network: NetworkRecord, built: EndpointRecord, previous: Result
) -> None:
    """Refuse an endpoint that is not as it was made, or not in the namespace that is asked about.

    Raises:
        CniError: code 104, with all that is missing or different.
    """
    refuse_missing(built, previous)
    await _refuse_elsewhere(engine, request, built)
    if built.attachment.link is not None and all(it.name != request.ifname for it in previous.interfaces if it.sandbox):
        raise CniError(Code.WRONG, f"prevResult lacks interface {request.ifname} of the container")
    if wrong := await engine.readiness.faults(network, built):
        raise CniError(Code.WRONG, "the kernel is not as it was made", wrong)


async def _refuse_elsewhere(engine: Engine, request: Request, built: EndpointRecord) -> None:
    """Refuse if the container's namespace is another one than that of its ADD."""
    try:
        _, ident = await engine.kernel.sandboxes.find(request.netns)
    except NetplugError as exc:
        raise CniError(Code.WRONG, f"CNI_NETNS: {exc.message}") from None
    if built.sandbox_id not in {"", ident}:
        words = f"{request.ifname} is not in {request.netns}: it was attached in another namespace, {built.sandbox}"
        raise CniError(Code.WRONG, words)


def refuse_missing(built: EndpointRecord, previous: Result) -> None:
    """Refuse a previous result that lacks addresses of an endpoint.

    Raises:
        CniError: code 104.
    """
    listed = {ip.address for ip in previous.ips}
    if missing := [str(address) for address in built.endpoint.addresses if address not in listed]:
        raise CniError(Code.WRONG, f"prevResult lacks {', '.join(missing)}")


async def refuse_unready(engine: Engine, record: NetworkRecord | None, wanted: Wanted) -> None:
    """Refuse to be ready for an ADD that would fail, or while existing containers suffer.

    Raises:
        CniError: 50, or 51 when existing containers are limited too.
    """
    try:
        await engine.readiness.refuse_unready(record, wanted.network, wanted.groups or None)
    except NotReadyError as exc:
        raise CniError(Code.LIMITED if exc.damaged else Code.NOT_AVAILABLE, exc.message, exc.hint) from None
