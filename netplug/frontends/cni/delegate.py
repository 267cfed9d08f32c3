"""Another IPAM plugin, run as the specification says (section 4): whole configuration, same environment."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

from netplug.engine.host_services import Plugins
from netplug.errors import NetplugError
from netplug.frontends.cni.config import DHCP
from netplug.frontends.cni.result import Result, parse
from netplug.frontends.cni.wire import CniError, Code, Request

_NOBODY = ("no more tries", "timed out", "timeout", "unable to receive")
"""Error texts of versions of the reference dhcp plugin if no server answers."""


class Delegate:
    """The IPAM plugin that a configuration names.

    `stderr`: its output there, which the runtime gets. `asks_by_link`: it finds addresses by the interface, which must
    exist before ADD, and until after DEL.
    """

    def __init__(self, request: Request, plugins: Plugins) -> None:
        self._request = request
        self._plugins = plugins
        self.stderr = ""
        self.asks_by_link = request.foreign_ipam == DHCP

    def find(self) -> str:
        """Return the plugin's executable.

        Raises:
            CniError: code 7: it is not in CNI_PATH.
        """
        try:
            return self._plugins.find(self._request.foreign_ipam, self._request.env.get("CNI_PATH", ""))
        except NetplugError as exc:
            raise CniError(Code.CONFIG, str(exc)) from None

    async def add(self) -> Result:
        """Run ADD, and return the addresses.

        Raises:
            CniError: the plugin's error; 100: the answer cannot be parsed.
        """
        data = await self._run("ADD")
        result = parse(data, self._request.version)
        if not result.ips:
            raise CniError(Code.CONFIG, f"IPAM plugin {self._request.foreign_ipam!r} returned missing IP config")
        return result

    @asynccontextmanager
    async def leased(self) -> AsyncIterator[Result]:
        """Yield the addresses of `add`. If the block fails, DEL gives them back."""
        found = await self.add()
        try:
            yield found
        except BaseException:
            with suppress(CniError):  # the first error counts
                await self.run("DEL")
            raise

    async def run(self, command: str) -> None:
        """Run a command without a result; raises as `add`."""
        await self._run(command)

    async def run_if_it_can(self, command: str, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Run a command if the plugin supports the specification's version that has it.

        `more`: keys that replace those of the configuration.
        """
        known = (await self._run("VERSION")).get("supportedVersions")
        if isinstance(known, list) and self._request.version in known:
            await self._run(command, more)

    async def _run(self, command: str, more: Mapping[str, Any] = MappingProxyType({})) -> Mapping[str, Any]:
        request = self._request
        program, stdin = self.find(), json.dumps({**request.raw, **more}).encode()
        try:
            done = await self._plugins.run(program, {**request.env, "CNI_COMMAND": command}, stdin)
        except NetplugError as exc:
            raise CniError(Code.TRY_AGAIN, str(exc)) from None
        self.stderr += done.stderr.decode(errors="replace")
        answer = _object(done.stdout)
        if done.code == 0 and (answer is not None or command != "ADD"):
            return answer or {}
        if self.asks_by_link and command == "ADD" and any(words in str(answer) for words in _NOBODY):
            words = f"no DHCP server answers by {request.ifname} on network {request.network!r}"
            raise CniError(Code.TRY_AGAIN, words, str((answer or {}).get("msg", "")))
        raise _failure(request.foreign_ipam, done.code, done.stdout, answer)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _failure(name: str, code: int, stdout: bytes, answer: Mapping[str, Any] | None) -> CniError:
    if answer is None or not isinstance(answer.get("code"), int):
        words = f"IPAM plugin {name!r} ended with {code} and said {stdout[:200].decode(errors='replace')!r}"
        return CniError(Code.INTERNAL, words)
    return CniError(answer["code"], f"IPAM plugin {name!r}: {answer.get('msg', '')}", str(answer.get("details") or ""))
