"""What a lab tells podman."""

from pathlib import Path

import pytest

from netplug.lab.podman import oci_runtime


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
