"""What the Debian package has beside the Python environment: commands, units, settings, documents."""

import gzip
import os
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

import metadata
import wheels

HERE = Path(__file__).parent
INTERPRETER = f"/{wheels.ENVIRONMENT}/bin/python"
COMMAND = f"""\
#!{INTERPRETER} -I
import sys

from netplug.cli import main

sys.exit(main())
"""
CNI = Path("usr/lib/cni/pynet")
LINKS = {"usr/lib/netavark/pynet": "../cni/pynet"}
"""podman looks for plugins of netavark in this folder, among others (containers.conf(5), `netavark_plugin_dirs`)."""
PLACES = {
    "systemd": "usr/lib/systemd/system",
    "networkmanager": "usr/lib/NetworkManager/conf.d",
    "networkd": "usr/lib/systemd/network",
}
"""Where the folders of netplug/host_files go; netplug.toml is settled by itself."""
COMPLETION = {
    "bash": "usr/share/bash-completion/completions",
    "zsh": "usr/share/zsh/vendor-completions",
    "fish": "usr/share/fish/vendor_completions.d",
}
"""Where the files of packaging/completion.py go, by shell."""
SETTINGS = Path("etc/netplug/netplug.toml")
DOCUMENTS = Path("usr/share/doc/netplug")


def lay_out(root: Path, project: Path, version: str) -> None:
    """Put everything below `root`."""
    write(root / "usr/bin/netplug", COMMAND, 0o755)
    cni(root)
    for link, target in LINKS.items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(target)
    host_files(root, project / "netplug/host_files")
    man_pages(root, project)
    completion(root, project)
    compressed(root / DOCUMENTS / "CHANGELOG.md.gz", (project / "CHANGELOG.md").read_text())
    write(root / DOCUMENTS / "copyright", (HERE / "copyright").read_text())
    write(root / "usr/share/lintian/overrides/netplug", (HERE / "lintian-overrides").read_text())
    write(root / "usr/share/python3/runtime.d/netplug.rtupdate", (HERE / "rtupdate").read_text(), 0o755)
    compressed(root / DOCUMENTS / "changelog.gz", changelog(version))


def cni(root: Path) -> None:
    """Write the executable for CNI runtimes and netavark, as `netplug cni install` does."""
    sys.path.insert(0, str(root / wheels.COMMON))
    sys.dont_write_bytecode = True  # into the package
    from netplug.cli import cni_executable  # noqa: PLC0415 - of the package that is being built

    content = cni_executable.program(Path("/run/netplug"), INTERPRETER)
    if not content:
        sys.exit("deb: the CNI executable was not built: there is no C compiler, or it failed")
    path = root / CNI
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.chmod(0o755)


def host_files(root: Path, source: Path) -> None:
    for folder, place in PLACES.items():
        for file in sorted((source / folder).glob("*")):
            write(root / place / file.name, file.read_text())
    write(root / SETTINGS, (source / SETTINGS.name).read_text(), 0o640)  # it may have etcd's password


def man_pages(root: Path, project: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, project / "packaging/man.py", folder], check=True)
        for page in sorted(Path(folder).iterdir()):
            compressed(root / f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz", page.read_text())


def completion(root: Path, project: Path) -> None:
    """Have the shells complete commands."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, project / "packaging/completion.py", folder], check=True)
        for shell, place in COMPLETION.items():
            for file in sorted((Path(folder) / shell).iterdir()):
                write(root / place / file.name, file.read_text())


def changelog(version: str) -> str:
    """Return Debian's changelog: one entry, since the project's own tells what changed."""
    date = formatdate(int(os.environ["SOURCE_DATE_EPOCH"]))
    text = "What changed is told in CHANGELOG.md.gz, beside this file."
    return f"netplug ({version}) unstable; urgency=medium\n\n  * {text}\n\n -- {metadata.MAINTAINER}  {date}\n"


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def compressed(path: Path, text: str) -> None:
    """Write a file as `gzip -9n` does: without a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
