"""setuptools' commands, with the CNI executable in what they build (pyproject.toml names them)."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
PROGRAM = "netplug/frontends/cni/cni-shim"


class BuildPackage(build_py):
    """Puts the executable into the package, and what it is built from into the sdist."""

    def run(self) -> None:
        super().run()
        folder = Path() if self.editable_mode else Path(self.build_lib)
        subprocess.run([sys.executable, HERE / "build.py", folder / PROGRAM], check=True)

    def get_source_files(self) -> list[str]:
        own = [str(file.relative_to(Path.cwd())) for file in sorted(HERE.glob("*.[cp]*"))]
        return [*super().get_source_files(), *own]


class BuildWheel(bdist_wheel):
    """Makes a wheel for this machine alone where there is a compiler; any Python will do."""

    def finalize_options(self) -> None:
        if shutil.which(shlex.split(os.environ.get("CC") or "cc")[0]):
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]
