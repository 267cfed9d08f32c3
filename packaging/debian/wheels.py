"""The wheels inside the Debian package: for which Pythons and machines, and where their files go.

One package serves two releases of Debian. What is the same for both Pythons (all that is pure) is there once, in
`common`; compiled libraries are there once for each. A virtual environment finds the part for the Python that runs it
by itself, since its folders carry the version; a .pth file there leads on to `common`.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PYTHONS = ("3.11", "3.13")
"""Of Debian 12 and 13."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names of architectures, and those of wheels."""
LOCK = Path(__file__).with_name("lock.txt")
ENVIRONMENT = Path("usr/lib/netplug")
COMMON = ENVIRONMENT / "lib/common"
ADDED = "/usr/local/lib/netplug/drivers"
"""Where an administrator puts drivers of other packages, by `pip install --target`."""
_GLIBC = range(17, 37)
"""Debian 12 has glibc 2.36."""
_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
_UNUSED = re.compile(r"/tests?/|/_testcapi|/yaml/_yaml\.|\.(pyx|pxd|[ch])$|\.dist-info/RECORD$")
"""Tests and sources of libraries, pip's lists, and PyYAML's copy of libyaml: lab files do not need its speed."""


def for_target(python: str, machine: str) -> list[str]:
    """Return pip's options to choose wheels for a Python and a machine, whatever it runs on itself."""
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in reversed(_GLIBC)]
    return [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:", *platforms]


def libraries(python: str, machine: str, cache: Path) -> list[Path]:
    """Return the wheels of lock.txt, after downloading them into `cache` if it lacks them."""
    folder = cache / f"{python}-{machine}-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=cache))
        options = ["--no-deps", "--require-hashes", "--requirement", str(LOCK), "--dest", str(part)]
        subprocess.run([*_PIP, "download", *options, *for_target(python, machine)], check=True)
        with suppress(OSError):  # another build was faster
            part.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
    return sorted(folder.glob("*.whl"))


def own(sources: Path, folder: Path) -> Path:
    """Build the project's wheel from a copy of its files, and return it."""
    command = [*_PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sources)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def lay_out(root: Path, machine: str, cache: Path, own_wheel: Path) -> None:
    """Unpack all wheels below `root`, as one virtual environment for all Pythons."""
    found = {python: libraries(python, machine, cache) for python in PYTHONS}
    shared = set.intersection(*({wheel.name for wheel in wheels} for wheels in found.values()))
    for python, wheels in found.items():
        site = root / ENVIRONMENT / f"lib/python{python}/site-packages"
        site.mkdir(parents=True)
        (site / "netplug.pth").write_text(f"../../common\n{ADDED}\n")
        for wheel in wheels:
            if wheel.name not in shared:
                unpack(wheel, site)
    for wheel in (*(it for it in found[PYTHONS[0]] if it.name in shared), own_wheel):
        unpack(wheel, root / COMMON)
    binaries = sorted(root.rglob("*.so"))
    subprocess.run(["strip", "--strip-unneeded", *binaries], check=True)
    interpreter = root / ENVIRONMENT / "bin/python"
    interpreter.parent.mkdir()
    interpreter.symlink_to("../../../bin/python3")
    (root / ENVIRONMENT / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel as pip does, without commands and without what nobody needs at run time."""
    with zipfile.ZipFile(wheel) as archive:
        for name, inside in _placed(archive.namelist()):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(inside))
            executable = archive.getinfo(inside).external_attr >> 16 & 0o111
            target.chmod(0o755 if executable and not name.endswith(".so") else 0o644)


def _placed(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the place of each file below site-packages, and its name in the wheel."""
    for inside in names:
        top, _, rest = inside.partition("/")
        name = inside
        if top.endswith(".data"):
            scheme, _, name = rest.partition("/")
            if scheme not in {"purelib", "platlib"}:
                continue
        if not _UNUSED.search(f"/{name}") and not inside.endswith("/"):
            yield name, inside
