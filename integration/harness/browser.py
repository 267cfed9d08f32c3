"""A headless Chromium in a host, driven by the DevTools protocol over pipes, without a port.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Any, Self

import pytest

from .host import Host

needs_chromium = pytest.mark.skipif(not which("chromium"), reason="needs chromium (make setup)")
DEADLINE_S = 40
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
}
_FLAGS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


class BrowserError(AssertionError):
    """Chromium refused a command, or a script in the page failed."""


class Browser:
    """One page. `errors`: what its console says of errors; `requests`: URLs that it asked for."""

    def __init__(self, host: Host, width: int = 1440, height: int = 900) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.replies: dict[str, str] = {}
        """Answers to paths, in place of the server's."""
        self._number = 0
        self._session = ""
        self._unread = b""
        theirs, self._to = os.pipe()
        self._from, theirs_too = os.pipe()
        command = (
            f"exec chromium {' '.join(_FLAGS)} --remote-debugging-pipe --user-data-dir={host.dir}/chromium about:blank"
        )
        script = f"{command} 3<&{theirs} 4>&{theirs_too}"
        with (host.dir / "chromium.log").open("ab") as out:
            self._process = subprocess.Popen(
                host.inside(["bash", "-c", script]),
                pass_fds=(theirs, theirs_too),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=host.env | {"HOME": str(host.dir), "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
                start_new_session=True,
            )
        os.close(theirs)
        os.close(theirs_too)
        try:
            self._attach()
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        target = next(it for it in self.call("Target.getTargets")["targetInfos"] if it["type"] == "page")
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/*"}])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and all of its processes."""
        self._session = ""
        try:
            self.call("Browser.close")
            self._process.wait(DEADLINE_S)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **params: Any) -> Any:
        """Send a command, and return its result."""
        number = self._send(method, params)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            message = self._read(deadline)
            if message is None:
                raise BrowserError(f"{method}: no answer in {DEADLINE_S} s")
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _send(self, method: str, params: dict[str, Any]) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._number

    def _read(self, deadline: float) -> dict[str, Any] | None:
        while b"\0" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                return None
            data = os.read(self._from, 1 << 20)
            if not data:
                raise BrowserError("chromium ended")
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Fetch.requestPaused":
            self._answer(params)

    def _answer(self, params: dict[str, Any]) -> None:
        path = "/" + params["request"]["url"].split("/", 3)[3].partition("?")[0]
        if path not in self.replies:
            self._send("Fetch.continueRequest", {"requestId": params["requestId"]})
            return
        body = base64.b64encode(self.replies[path].encode()).decode()
        headers = [{"name": "content-type", "value": "application/json"}]
        said = {"requestId": params["requestId"], "responseCode": 200, "responseHeaders": headers, "body": body}
        self._send("Fetch.fulfillRequest", said)

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def js(self, script: str) -> Any:
        """Return what an expression is in the page; a promise is awaited."""
        as_the_page = {"allowUnsafeEvalBlockedByCSP": False, "awaitPromise": True, "returnByValue": True}
        found = self.call("Runtime.evaluate", expression=script, **as_the_page)
        if "exceptionDetails" in found:
            raise BrowserError(f"{script}: {found['exceptionDetails'].get('exception', found)}")
        return found["result"].get("value")

    def until(self, script: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                found = self.js(f"Boolean({script})")
            except BrowserError as exc:
                found = False
                if "ended" in str(exc):
                    raise
            if found:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {deadline_s} s: {script}; errors: {self.errors}")
            self.pump(0.03)

    def pump(self, seconds: float) -> None:
        """Take what comes for some time: answers to the page's requests wait for it."""
        deadline = time.monotonic() + seconds
        while (message := self._read(deadline)) is not None:
            self._note(message)

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return str(self.js(f"(({{innerText, textContent}}) => innerText ?? textContent)({_node(selector)})"))

    def click(self, selector: str) -> None:
        """Click into the middle of an element, as a mouse does."""
        script = f"""(() => {{ const node = {_node(selector)};
            node.scrollIntoView({{block: "center"}}); const it = node.getBoundingClientRect();
            return [it.x + it.width / 2, it.y + it.height / 2]; }})()"""
        x, y = self.js(script)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key, with its name or its character."""
        code = KEYS.get(key) or (ord(key.upper()) if len(key) == 1 and key.isalnum() else 0)
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        more = {"key": key, "code": key if len(key) > 1 else "", "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, scheme: str) -> None:
        """Prefer "dark" or "light"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def _node(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"
