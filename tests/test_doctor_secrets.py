"""The doctor finds files of root's with secrets that everybody can read."""

from pathlib import Path

import pytest
from living import settings_in

from netplug.insight.doctor import stores
from netplug.insight.doctor.subject import HostSubject, OneLook
from netplug.kernel.fake.kernel import FakeKernel


@pytest.mark.parametrize("text", ['etcd_password = "x"\netcd_user = "np"\n', 'store = "etcd://np:x@db:2379"\n', ""])
async def test_files_with_secrets_that_everybody_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    config, key = tmp_path / "netplug.toml", tmp_path / "host.key"
    config.write_text(text)
    key.touch()
    monkeypatch.setenv("NETPLUG_CONFIG", str(config))
    cert = tmp_path / "host.pem"
    cert.touch()
    settings = settings_in(tmp_path, store="etcd://db:2379", etcd_ca=cert, etcd_cert=cert, etcd_key=key)
    host = HostSubject(settings, OneLook(FakeKernel()), [], 0, daemon=False)

    async def exposed() -> list[str]:
        return [it.mend for it in await stores.trust(host) if "everybody on this host can read" in it.why]

    for mode, shown in ((0o644, True), (0o640, False)):
        config.chmod(mode)
        key.chmod(mode)
        named = [str(config)] * bool(text) + [str(key)]
        assert await exposed() == ([f"chmod o= {path}" for path in named] if shown else [])
