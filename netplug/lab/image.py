"""A small image that needs no registry: busybox with its applets as links, for `docker import`."""

import io
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from shutil import which

from netplug.errors import NetplugError

IMAGE = "bb:1"
PAGE = "hello from netplug\n"


@cache
def busybox_rootfs_tar() -> bytes:
    """Return a root file system as a tar archive; `/www/index.html` contains `PAGE`.

    Raises:
        NetplugError: "unavailable": the machine has no statically linked busybox.
    """
    busybox = which("busybox")
    if not busybox:
        raise NetplugError("unavailable", "busybox is missing", hint="apt-get install busybox-static")
    libraries = subprocess.run(["ldd", busybox], check=False, capture_output=True, text=True).stdout
    if "=>" in libraries:
        raise NetplugError("unavailable", f"{busybox} is not statically linked", hint="apt-get install busybox-static")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "www"):
            _add(tar, folder, kind=tarfile.DIRTYPE, mode=0o1777 if folder == "tmp" else 0o755)
        for name in ("sbin", "usr/bin", "usr/sbin"):
            _add(tar, name, kind=tarfile.SYMTYPE, link="../bin" if "/" in name else "bin")
        _add(tar, "bin/busybox", Path(busybox).read_bytes(), mode=0o4755)
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _add(tar, "etc/group", b"root:x:0:\n")
        _add(tar, "www/index.html", PAGE.encode())
    return out.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
    tar.addfile(info, io.BytesIO(data))
