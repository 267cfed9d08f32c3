"""What dpkg knows of the package: control, checksums, conffiles, maintainer scripts."""

import hashlib
import os
import re
from itertools import pairwise
from pathlib import Path

import wheels

HERE = Path(__file__).parent
SCRIPTS = ("postinst", "postrm", "prerm")
MAINTAINER = "{} <{}>".format(
    os.environ.get("DEBFULLNAME", "netplug maintainers"), os.environ.get("DEBEMAIL", "maintainers@netplug.internal")
)
"""Who builds it: Debian's variables say so."""
CONTROL = """\
Package: netplug
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {depends}
Recommends: libnftables1
Suggests: docker.io | docker-ce, podman (>= 4.5), containerd, etcd-server
Section: net
Priority: optional
Description: container networking for every runtime
 One daemon provides a network driver and an IPAM driver for Docker, a CNI
 plugin for CNI runtimes, and a netavark plugin for podman. It also attaches
 bare network namespaces. All of them share the same networks, addresses and
 names, on one host or across several.
 .
 The package carries its own Python libraries, for the Pythons of Debian 12
 and Debian 13.
"""


def version(project: Path) -> str:
    """Return the project's version."""
    found = re.search(r'__version__ = "(.+)"', (project / "netplug/__init__.py").read_text())
    assert found  # noqa: S101 - the project has one
    return found[1]


def depends() -> str:
    """Return the packages without which it does not run: a Python that it has libraries for, and what those link to."""
    minors = [int(python.partition(".")[2]) for python in wheels.PYTHONS]
    clauses = [f"python3 (>= 3.{minors[0]}~)", f"python3 (<< 3.{minors[-1] + 1}~)"]
    for lower, upper in pairwise(minors):
        if upper > lower + 1:
            clauses.append(f"python3 (<< 3.{lower + 1}~) | python3 (>= 3.{upper}~)")
    return ", ".join([*clauses, "libc6 (>= 2.36)", "libgcc-s1", "init-system-helpers (>= 1.65~)"])


def write(root: Path, package_version: str, architecture: str) -> None:
    """Write the folder DEBIAN, when all other files are in place."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}" for path in files]  # noqa: S324
    settings = [f"/{path.relative_to(root)}" for path in files if path.relative_to(root).parts[0] == "etc"]
    control = CONTROL.format(
        version=package_version,
        architecture=architecture,
        maintainer=MAINTAINER,
        size=sum(-(-path.stat().st_size // 1024) for path in files),
        depends=depends(),
    )
    folder = root / "DEBIAN"
    folder.mkdir()
    texts = {"control": control, "md5sums": lines(sums), "conffiles": lines(settings)}
    for name, text in texts.items():
        if text:
            (folder / name).write_text(text)
    for name in SCRIPTS:
        (folder / name).write_text((HERE / name).read_text())
        (folder / name).chmod(0o755)


def lines(items: list[str]) -> str:
    return "".join(f"{item}\n" for item in items)
