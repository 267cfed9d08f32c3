"""Build the Debian package: `make deb`.

    .venv/bin/python packaging/debian/build.py [--version V] [--out FOLDER]

dpkg-deb alone makes it: debhelper would bring its own ideas of where Python code goes, and there is nothing to
configure or compile but one small C program, which setuptools builds with the wheel. Two builds of a commit give the
same bytes: all times are those of the commit, files are sorted by dpkg-deb, and the libraries are pinned by lock.txt.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import files
import metadata
import wheels

PROJECT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--version", help="the package's version (default: the project's)")
    parser.add_argument("--out", type=Path, default=PROJECT / "dist", help="where to put it (default: dist)")
    given = parser.parse_args()
    os.umask(0o022)
    os.environ["SOURCE_DATE_EPOCH"] = committed()
    architecture = output("dpkg", "--print-architecture")
    if architecture not in wheels.MACHINES:
        sys.exit(f"deb: no libraries are pinned for {architecture}: add it to MACHINES of packaging/debian/wheels.py")
    with tempfile.TemporaryDirectory(prefix="netplug-deb-") as work:
        print(build(Path(work), given.version or metadata.version(PROJECT), architecture, given.out))


def build(work: Path, version: str, architecture: str, out: Path) -> Path:
    """Build the package in an empty folder, and return where it is."""
    sources, root = work / "sources", work / "root"
    copy_sources(sources)
    wheel = wheels.own(sources, work)
    cache = PROJECT / "build/wheels"
    wheels.lay_out(root, wheels.MACHINES[architecture], cache, wheel)
    files.lay_out(root, PROJECT, version)
    metadata.write(root, version, architecture)
    out.mkdir(parents=True, exist_ok=True)
    package = out / f"netplug_{version}_{architecture}.deb"
    # One thread: what several write depends on their number.
    options = ["--root-owner-group", "--threads-max=1", "-Zxz"]
    subprocess.run(["dpkg-deb", *options, "--build", root, package], check=True, stdout=subprocess.DEVNULL)
    return package


def copy_sources(to: Path) -> None:
    """Copy what belongs to the project: a build in the checkout would take in what former builds left there."""
    for name in output("git", "-C", str(PROJECT), "ls-files", "-z", "-co", "--exclude-standard").split("\0"):
        source, target = PROJECT / name, to / name
        if name and (source.is_symlink() or source.is_file()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def committed() -> str:
    """Return the time of the last commit, in seconds since 1970: that of all files in the package."""
    return os.environ.get("SOURCE_DATE_EPOCH") or output("git", "-C", str(PROJECT), "log", "-1", "--format=%ct")


def output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main()
