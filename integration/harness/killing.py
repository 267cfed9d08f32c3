"""A host on which callers come and go (`callers`): their networks and namespaces, and what must be left."""

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from . import callers
from .cni import BIN_DIR
from .crowd import Api
from .netplugd import Netplug

_PLUGIN_POOL = {"AddressSpace": "LocalDefault", "Pool": "10.203.0.0/16", "Gateway": "10.203.0.1/16"}
_STORED = "10.202.0.0/16"


@dataclass
class Callers:
    """Networks for the three kinds of callers."""

    netplug: Netplug
    networks: dict[str, str]
    number: int

    def run(self, seconds: float, killed: float, seed: int = 1) -> callers.Result:
        """Have the callers work for so long, and return what they did."""
        plan = callers.Plan(self.networks, self.number, seconds, killed, f"{BIN_DIR}/pynet", seed=seed)
        program = [sys.executable, str(Path(callers.__file__)), json.dumps(asdict(plan))]
        done = self.netplug.host.run(program, timeout_s=seconds + 2 * callers.PATIENCE_S)
        return callers.Result(**json.loads(done.stdout))


@contextmanager
def calling(netplug: Netplug, number: int) -> Iterator[Callers]:
    """Networks and namespaces for so many callers, gone after the block."""
    host = netplug.host
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    networks = {"cni": "churn-cni", "api": "churn-api", "plugin": secrets.token_hex(32)}
    names = [f"churn{one}" for one in range(number)]
    host.run(["ip", "-batch", "-"], stdin="".join(f"netns add {name}\n" for name in names))
    options = {"com.docker.network.generic": {}, "com.docker.network.enable_ipv6": False}
    with Api.of(netplug) as api, closing(callers.UnixHttp(str(netplug.plugin_socket))) as plugin:
        for kind, subnet in (("cni", _STORED), ("api", "10.201.0.0/16")):
            api.ask("POST", "networks", {"name": networks[kind], "subnets": [{"subnet": subnet}]})
        body = {"NetworkID": networks["plugin"], "Options": options, "IPv4Data": [_PLUGIN_POOL], "IPv6Data": []}
        plugin.post("/NetworkDriver.CreateNetwork", body)
        try:
            yield Callers(netplug, networks, number)
        finally:
            plugin.post("/NetworkDriver.DeleteNetwork", {"NetworkID": networks["plugin"]})
            for kind in ("cni", "api"):
                api.ask("DELETE", f"networks/{networks[kind]}")
            host.run(["ip", "-batch", "-"], stdin="".join(f"netns del {name}\n" for name in names))
