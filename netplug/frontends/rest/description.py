"""The REST API as OpenAPI describes it: ``GET /openapi.json``, docs/openapi.json and docs/rest.md.

FastAPI knows paths and bodies. What an operation does is said here, and that all errors have one form.
"""

from typing import Any

from fastapi import FastAPI

INTRODUCTION = (
    "The API of the netplug daemon on its Unix socket (/run/netplug/netplug.sock), which the command netplug uses. "
    "Who may connect is root on the host."
)
OPERATIONS = {
    "GET /version": "Version of the daemon, and the name of its host.",
    "GET /networks": "List the networks of this host, made by whatever runtime.",
    "POST /networks": "Create a network; with `cluster`, on all hosts that share the store.",
    "POST /networks/prune": "Remove networks that nobody uses.",
    "GET /networks/{ref}": "Show a network with its endpoints. `ref`: its name, id, or the unique beginning of its id.",
    "PATCH /networks/{ref}": "Change a network under its containers. What cannot change is refused.",
    "DELETE /networks/{ref}": "Remove a network without endpoints.",
    "GET /endpoints": "List endpoints, in a network of the cluster those of all hosts. `network`: only of this one.",
    "POST /attach": "Attach a network namespace to a network.",
    "POST /detach": "Detach a network namespace that was attached.",
    "POST /publish": "Publish ports of a running endpoint: all of them or none.",
    "POST /unpublish": "Unpublish ports that were published by attach or publish.",
    "GET /ipam": "List pools with their leases and owners.",
    "GET /ipam/audit": "List leases without an owner, and owners without a lease.",
    "GET /hosts": "List the hosts of the cluster.",
    "DELETE /hosts/{ref}": "Forget a dead host of the cluster, with its endpoints and addresses.",
    "POST /hosts/rebind": "Take over the identity of a host whose state was moved to this machine.",
    "GET /dns": "List DNS names. `network`: only those of this one.",
    "GET /dns/stats": "Count DNS queries of each network since the daemon's start.",
    "POST /dns/query": "Ask the name server as a container of these networks would.",
    "GET /dns/host": "Return whether and how the host itself asks for names.",
    "POST /dns/host": "Have the host itself ask for names of all networks. If it does already, nothing changes.",
    "DELETE /dns/host": "Have the host ask no more. If it does not, nothing changes.",
    "GET /diff": "Compare the kernel with the records.",
    "POST /repair": "Repair differences; the answer has those that were found.",
    "GET /firewall": "Show the host's firewall: base chains of nf_tables, iptables, forwarding, firewalld.",
    "GET /graph": "Show hosts, networks, containers and how they hang together, as `netplug graph --json` prints it.",
    "GET /traffic": "Show the counters of endpoints, and of their DNS queries. `network`: only of this one.",
    "GET /doctor": "Say what is wrong with this host, why, and what mends it.",
    "GET /settings": "Show the daemon's settings, without secrets.",
    "POST /trace": "Send a packet and watch it on its path.",
    "GET /trace": "The same, for readers of the page.",
    "GET /capture": "Find the ends of a capture: the links of an endpoint, and with `others` of those in its networks.",
    "POST /capture/ask": "Have another host of the cluster capture.",
    "GET /events": "List what happened, the oldest first: `events`, and whether there are `more` before them.",
    "GET /events/stream": "Send events as they happen (`text/event-stream`), from `since` or `Last-Event-ID` on.",
}
"""What each operation does, by method and path below /v1."""
ERROR = {
    "type": "object",
    "description": "An error. `kind` decides the status: invalid 400, not_found 404, exists and forbidden 409, "
    "internal 500, unavailable and unreachable (of the store) 503. `message` is one line, `hint` what to do.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["kind", "message", "hint"],
            "properties": {name: {"type": "string"} for name in ("kind", "message", "hint")},
        }
    },
}
_FAILED = {"description": "Error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


def describe(app: FastAPI) -> None:
    """Have the app describe itself by these words."""
    said = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(said())
        return said()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _complete(schema: dict[str, Any]) -> None:
    schema["info"]["description"] = INTRODUCTION
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            words = OPERATIONS.get(f"{method.upper()} {path.removeprefix('/v1')}", "")
            operation["summary"] = words
            operation.pop("description", None)  # of the function, for those who read the code
            operation["responses"].pop("422", None)  # errors are answered by ours
            operation["responses"]["default"] = _FAILED
            if path.endswith("/stream"):
                operation["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    schemas = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR
