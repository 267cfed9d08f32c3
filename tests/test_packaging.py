"""The sdist and the wheel made from it: the linked packages are real, under `netplug.*` names only."""

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
from shutil import copytree, ignore_patterns, which

import pytest

from netplug import __version__
from netplug.frontends.cni import shim

ROOT = Path(__file__).parent.parent
PROGRAM = "netplug/frontends/cni/cni-shim"
LINKED = ("drivers", "ipam", "dns")

pytestmark = pytest.mark.timeout(180)  # an isolated build downloads setuptools


def _build_backend_is_here() -> bool:
    return int(version("setuptools").split(".")[0]) >= 80


def _build(what: str, source: Path, out: Path) -> Path:
    isolation = ["--no-isolation"] if _build_backend_is_here() else []
    command = [sys.executable, "-m", "build", f"--{what}", *isolation, "--outdir", str(out), str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("netplug-*")
    return made


def _python(code: str, folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter with `path` before everything else, in a folder that is no checkout."""
    program = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{code}"
    return subprocess.run(
        [sys.executable, "-P", "-c", program], check=False, capture_output=True, text=True, cwd=folder
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: builds write into their source folder, and the checkout is not theirs."""
    copy = tmp_path_factory.mktemp("source") / "with space"
    ignored = ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "cni-shim")
    copytree(ROOT, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(unpacked)], check=True)
    (source,) = unpacked.iterdir()
    return _build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(wheel)], check=True)
    return target


@pytest.mark.parametrize("package", LINKED)
def test_linked_package_imports_from_the_wheel(installed: Path, package: str) -> None:
    code = f"import netplug.{package} as it; print(it.__file__)"
    done = _python(code, installed.parent, installed)
    assert done.stdout.strip() == str(installed / "netplug" / package / "__init__.py"), done.stderr


def test_wheel_holds_every_module_of_the_checkout_once(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.endswith(".py")}
    package = source / "netplug"
    own = {str(p.relative_to(source)) for p in package.rglob("*.py") if p.resolve().is_relative_to(package)}
    linked = {f"netplug/{p.relative_to(source)}" for name in LINKED for p in (source / name).rglob("*.py")}
    assert names == own | linked


def test_wheel_holds_the_text_of_every_table(source: Path, wheel: Path, installed: Path) -> None:
    files = sorted((source / "drivers" / "tables").glob("*.nft"))
    assert files
    with zipfile.ZipFile(wheel) as archive:
        for file in files:
            assert archive.read(f"netplug/drivers/tables/{file.name}") == file.read_bytes()
    names = [file.stem for file in files]
    code = f"from netplug.drivers import tables; print(all(tables.text(name) for name in {names}))"
    done = _python(code, installed.parent, installed)
    assert done.stdout.strip() == "True", done.stderr


def test_wheel_holds_every_file_of_the_page(source: Path, wheel: Path) -> None:
    files = sorted((source / "netplug" / "insight" / "page").iterdir())
    assert {"index.html", "main.js", "style.css"} <= {file.name for file in files}
    with zipfile.ZipFile(wheel) as archive:
        for file in files:
            assert archive.read(f"netplug/insight/page/{file.name}") == file.read_bytes()


def test_wheel_has_no_other_top_level_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
        assert "netplug/py.typed" in archive.namelist()
    assert {name for name in top if not name.endswith(".dist-info")} == {"netplug"}


def test_wheel_declares_the_commands_and_drivers(installed: Path) -> None:
    (path,) = installed.glob("*.dist-info/entry_points.txt")
    declared = ConfigParser()
    declared.read(path)
    assert declared["console_scripts"]["netplug"] == "netplug.cli:main"
    assert (installed / "bin" / "netplug").exists()
    for name, target in declared["netplug.drivers"].items():
        module, _, attribute = target.partition(":")
        done = _python(f"from {module} import {attribute}", installed.parent, installed)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_version_is_the_same_everywhere(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == __version__ == shim.VERSION


def test_wheel_has_the_licence_that_it_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"netplug-{__version__}.dist-info/METADATA").decode()
        text = archive.read(f"netplug-{__version__}.dist-info/licenses/LICENSE")
    assert {"License-Expression: Apache-2.0", "License-File: LICENSE"} <= set(metadata.splitlines())
    assert text == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in text.splitlines()[0]


@pytest.mark.parametrize("package", LINKED)
def test_linked_package_refuses_its_top_level_name(tmp_path: Path, package: str) -> None:
    done = _python(f"import {package}", tmp_path, ROOT)
    assert done.returncode == 1
    assert f"ImportError: import netplug.{package}, not {package}" in done.stderr


@pytest.mark.skipif(which("cc") is None, reason="there is no C compiler here")
def test_wheel_has_the_cni_executable_where_there_is_a_compiler(wheel: Path, installed: Path) -> None:
    assert "-py3-none-linux_" in wheel.name
    assert subprocess.run([installed / PROGRAM, "info"], check=False, capture_output=True).returncode == 0


def test_wheel_needs_no_compiler(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-compiler")
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(tmp_path)], check=True)
    (source,) = tmp_path.iterdir()
    wheel = _build("wheel", source, tmp_path / "out")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert PROGRAM not in archive.namelist()
