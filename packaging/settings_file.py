"""Write netplug/host_files/netplug.toml: all settings of the daemon, as comments with what they are.

python packaging/settings_file.py
"""

import json
from pathlib import Path
from textwrap import wrap

from manual import Setting, settings

FILE = Path(__file__).parent.parent / "netplug/host_files/netplug.toml"
HEAD = """\
# Settings of the netplug daemon: netplug.toml(5). A line without '#' changes the default. Afterwards:
#   systemctl restart netplug      containers stay connected; for settings marked (reload), a reload is enough
"""
WIDTH = 118
SAMPLES = {
    "etcd_ca": "/etc/netplug/etcd-ca.pem",
    "etcd_cert": "/etc/netplug/etcd-client.pem",
    "etcd_key": "/etc/netplug/etcd-client-key.pem",
    "etcd_user": "netplug",
    "etcd_password": "secret",
    "cluster_allow": "192.0.2.0/24",
    "host_name": "host1",
    "vtep": "eth1",
    "dns_upstream": "192.0.2.53",
    "http": "127.0.0.1:9820",
    "socket_group": "adm",
}
"""Values of the settings that are empty by default, or whose default is the host's."""


def content() -> str:
    """Return the whole file."""
    return HEAD + "".join(f"\n{paragraph(it)}" for it in settings())


def paragraph(setting: Setting) -> str:
    """Return what a setting is, its default where the line does not show it, and the line."""
    said = setting.help
    if setting.name in SAMPLES and setting.default:
        said += f" Default: {setting.default}."
    if setting.reloaded:
        said += " (reload)"
    comment = "".join(f"# {line}\n" for line in wrap(said, WIDTH))
    return f"{comment}#{setting.name} = {value(setting)}\n"


def value(setting: Setting) -> str:
    """Return a value in TOML: the default, or a sample. Strings of TOML are those of JSON."""
    if setting.kind == "boolean":
        return "true" if setting.default == "on" else "false"
    shown = SAMPLES.get(setting.name, setting.default)
    return json.dumps([shown] if setting.kind == "array of strings" else shown)


if __name__ == "__main__":
    FILE.write_text(content())
