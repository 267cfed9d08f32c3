"""What a lab tells podman, and hears of it."""

from pathlib import Path

import pytest

from netplug.lab.podman import has, oci_runtime, speaks_netavark


@pytest.mark.parametrize(
    ("controllers", "runtime"), [("hugetlb\n", "runc"), ("", ""), (None, "")], ids=["hybrid", "no controllers", "v2"]
)
def test_podman_is_told_of_runc_where_crun_refuses(
    controllers: str | None, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if controllers is not None:
        (tmp_path / "unified").mkdir()
        (tmp_path / "unified" / "cgroup.controllers").write_text(controllers)
    assert oci_runtime(tmp_path) == runtime


@pytest.mark.parametrize(
    ("version", "netavark"),
    [("podman version 4.3.1", False), ("podman version 5.8.2", True), ("podman version 6.0.0-dev", True), ("", False)],
)
def test_podman_that_speaks_cni_no_more_gets_a_driver_of_netavark(version: str, *, netavark: bool) -> None:
    assert speaks_netavark(version) is netavark


def test_container_of_netavark_asks_in_each_network_what_is_a_gateway_there() -> None:
    networks = {
        "blue": {
            "IPAddress": "10.94.1.145",
            "Gateway": "10.94.1.1",
            "GlobalIPv6Address": "",
            "IPv6Gateway": "",
        },
        "green": {
            "IPAddress": "10.208.0.2",
            "Gateway": "10.208.0.1",
            "GlobalIPv6Address": "fd72::2",
            "IPv6Gateway": "fd72::1",
        },
        "silent": {"IPAddress": "", "Gateway": "", "GlobalIPv6Address": "", "IPv6Gateway": ""},
    }
    conf = "search blue.netplug.internal\nnameserver 10.94.1.1\nnameserver 10.208.0.1\nnameserver fd72::1\n"
    assert has({"NetworkSettings": {"Networks": networks}}, conf) == {
        "blue": (("10.94.1.145",), ("10.94.1.1",)),
        "green": (("10.208.0.2", "fd72::2"), ("10.208.0.1", "fd72::1")),
        "silent": ((), ()),
    }
