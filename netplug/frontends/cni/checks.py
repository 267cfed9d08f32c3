"""CHECK and STATUS: what the engine finds wrong, with the codes of the specification."""

from netplug.engine import Engine
from netplug.engine.readiness import NotReadyError
from netplug.engine.records import EndpointRecord, NetworkRecord, NetworkSpec
from netplug.frontends.cni.result import Result
from netplug.frontends.cni.wire import CniError, Code


async def refuse_drift(engine: Engine, network: NetworkRecord, built: EndpointRecord, previous: Result) -> None:
    """Refuse an endpoint that is not as it was made.

    Raises:
        CniError: code 104, with all that is missing or different.
    """
    refuse_missing(built, previous)
    if wrong := await engine.readiness.faults(network, built):
        raise CniError(Code.WRONG, "the kernel is not as it was made", wrong)


def refuse_missing(built: EndpointRecord, previous: Result) -> None:
    """Refuse a previous result that lacks addresses of an endpoint.

    Raises:
        CniError: code 104.
    """
    listed = {ip.address for ip in previous.ips}
    if missing := [str(address) for address in built.endpoint.addresses if address not in listed]:
        raise CniError(Code.WRONG, f"prevResult lacks {', '.join(missing)}")


async def refuse_unready(engine: Engine, record: NetworkRecord | None, wanted: NetworkSpec) -> None:
    """Refuse to be ready for an ADD that would fail, or while existing containers suffer.

    Raises:
        CniError: 50, or 51 when existing containers are limited too.
    """
    try:
        await engine.readiness.refuse_unready(record, wanted)
    except NotReadyError as exc:
        raise CniError(Code.LIMITED if exc.damaged else Code.NOT_AVAILABLE, exc.message, exc.hint) from None
