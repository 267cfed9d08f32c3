"""Build Docker's managed plugin: a folder with config.json and rootfs, for `docker plugin create`.

The root file system consists of Debian's Python, C library and iptables, taken from their packages, of the libraries
that netplug runs with, and of netplug. It has no shell and no package manager. Nothing is installed on this machine.
Two builds from the same source and the same packages are equal: see `fingerprint`. Needs apt and root (chroot, owners).

    python packaging/plugin/build_plugin.py FOLDER
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "debian"))
import wheels  # noqa: E402 - the Debian package has the same libraries

from build import committed, copy_sources, output  # noqa: E402

ROOTS = ("iptables", "libnftables1")
"""Debian packages beside Python's: iptables for hosts that have rules of it, libnftables for `netplug diff`."""
WITHOUT = re.compile(
    r"(debconf|dpkg|gcc|install-info|libdb\d|libncursesw\d|libnsl\d|libpam|libreadline\d|libsystemd|libtinfo\d|libtirpc|"
    r"mailcap|media-types|mime-support|netbase|perl|readline-common|tar|tzdata).*"
)
"""Packages that these depend on, and netplug does not."""
STDLIB = (
    "curses",
    "dbm",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "msilib",
    "pydoc_data",
    "test",
    "tkinter",
    "turtledemo",
    "unittest",
    "venv",
    "wsgiref",
    "xmlrpc",
)
"""Parts of Python's library that no one imports."""
UNUSED = (
    "etc/*",
    "usr/bin/iptables-xml",
    "usr/lib/*/audit",
    "usr/lib/*/gconv",
    "usr/lib/libnetfilter*",
    "usr/sbin/*apply",
    "usr/sbin/*translate",
    "usr/sbin/arptables*",
    "usr/sbin/ebtables*",
    "usr/sbin/nfnl_osf",
    "usr/sbin/xtables-monitor",
    "usr/share",
)
"""Files of the Debian packages that nothing here uses."""
LEXERS = ("pygments/lexers/[a-z]*.py", "pygments/lexers/_[!_m]*.py")
"""Highlighters of languages, among the libraries."""
MERGED = ("bin", "sbin", "lib", "lib64")


def build(folder: Path) -> None:
    """Build the plugin into a folder, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "rootfs"
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "var/lib/netplug"):
        (root / name).mkdir(parents=True)
    (root / "var/run").symlink_to("/run")
    python = python_of_debian()
    unpack((f"{python}-minimal", f"lib{python}-stdlib", *ROOTS), root)
    shrink(root, python)
    install(root / "usr/lib/python3/dist-packages", python)
    add_programs(root, python)
    compile_all(root, python)
    shutil.copy(HERE / "config.json", folder)
    normalize(folder)


def python_of_debian() -> str:
    """Return the name of Debian's Python, such as python3.11."""
    found = re.search(r"Depends: (python3\.\d+)-minimal", output("apt-cache", "depends", "python3-minimal"))
    if not found:
        sys.exit("plugin: apt does not know python3-minimal: run apt-get update")
    return found[1]


def closure(packages: Iterable[str]) -> list[str]:
    """Return the packages with all that they depend on, except those in `WITHOUT`."""
    found: set[str] = set()
    ahead = list(packages)
    while ahead:
        found.update(ahead)
        listed = output("apt-cache", "depends", "--important", *ahead)
        needed = re.findall(r"^ {1,2}(?:Pre)?Depends: ([^<\s]+)$", listed, re.MULTILINE)
        ahead = sorted({it for it in needed if it not in found and not WITHOUT.fullmatch(it)})
    return sorted(found)


def unpack(packages: Iterable[str], root: Path) -> None:
    """Unpack Debian packages and what they need into a folder. Write their names and versions beside netplug."""
    with tempfile.TemporaryDirectory() as place:
        command = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *closure(packages))
        subprocess.run(command, check=True, cwd=place)
        files = sorted(Path(place).glob("*.deb"))
        for file in files:
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as archive:
                tar = ("tar", "-x", "--keep-directory-symlink", "-C", root)
                subprocess.run(tar, check=True, stdin=archive.stdout)
        names = [output("dpkg-deb", "-W", "--showformat=${Package} ${Version}", str(file)) for file in files]
    (root / "usr/lib/netplug").mkdir()
    (root / "usr/lib/netplug/packages").write_text("".join(f"{name}\n" for name in names))


def shrink(root: Path, python: str) -> None:
    """Remove what nothing here uses."""
    unused = [path for pattern in UNUSED for path in root.glob(pattern)]
    for path in (*unused, *(root / f"usr/lib/{python}" / name for name in STDLIB)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def install(target: Path, python: str) -> None:
    """Unpack the libraries for Debian's Python, whichever runs this, and netplug."""
    machine = wheels.MACHINES[output("dpkg", "--print-architecture")]
    for wheel in wheels.libraries(python.removeprefix("python"), machine, PROJECT / "build/wheels"):
        wheels.unpack(wheel, target)
    with tempfile.TemporaryDirectory() as work:
        copy_sources(Path(work, "sources"))
        wheels.unpack(wheels.own(Path(work, "sources"), Path(work)), target)
    for path in [path for pattern in LEXERS for path in target.glob(pattern)]:
        path.unlink()


def add_programs(root: Path, python: str) -> None:
    """Add the first process, and the commands for whoever enters the plugin."""
    for path, text in {
        "usr/lib/netplug/start": (HERE / "start.py").read_text(),
        "usr/bin/netplug": "import sys\n\nfrom netplug.cli import main\n\nsys.exit(main())\n",
    }.items():
        (root / path).write_text(f"#!/usr/bin/{python} -I\n{text}")
        (root / path).chmod(0o755)


def compile_all(root: Path, python: str) -> None:
    """Compile all modules. Their files' times are not looked at later, since the image changes them."""
    command = (f"/usr/bin/{python}", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash", "/usr/lib")
    subprocess.run(("chroot", root, *command), check=True, env=os.environ | {"PYTHONHASHSEED": "0"})


def normalize(folder: Path) -> None:
    """Set owner, mode and time of all files, so that they depend on their content only."""
    time = int(committed())
    for path in (folder, *sorted(folder.rglob("*"))):
        os.chown(path, 0, 0, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        os.utime(path, (time, time), follow_symlinks=False)


def fingerprint(folder: Path) -> str:
    """Return a hash of all names, modes, times and contents."""
    summed = hashlib.sha256()
    for line in _lines(folder):
        summed.update(line)
    return summed.hexdigest()


def _lines(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        yield f"\n{path.relative_to(folder)} {status.st_mode:o} {status.st_uid} {int(status.st_mtime)} ".encode()
        if path.is_symlink():
            yield os.fsencode(path.readlink())
        elif path.is_file():
            yield hashlib.sha256(path.read_bytes()).digest()


if __name__ == "__main__":
    made = Path(sys.argv[1])
    build(made)
    size = sum(it.lstat().st_size for it in made.rglob("*")) / 1e6
    print(f"{made}: {size:.0f} MB, {fingerprint(made)[:16]}")
