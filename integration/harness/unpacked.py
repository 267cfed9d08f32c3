"""Packages of Debian that `packaging/setup.sh` unpacked, laid over a host's own files.

They are not installed, since a firewall that is installed guards the machine.
"""

from pathlib import Path

from .host import Host

FOLDER = Path(__file__).resolve().parents[2] / ".venv"


def lay_over(host: Host, *folders: Path, names: tuple[str, ...] = ("etc", "usr")) -> None:
    """Show the files of unpacked packages, and let the host change all of /etc and /usr for itself, or of others."""
    lines = []
    for name in names:
        lower = ":".join((*(str(folder / name) for folder in folders), f"/{name}"))
        upper, work = f"/run/over/{name}", f"/run/over/{name}-work"
        lines.append(f"mkdir -p {upper} {work}")
        lines.append(f"mount -t overlay {name} /{name} -o lowerdir={lower},upperdir={upper},workdir={work}")
    host.run(["sh", "-ec", "\n".join(lines)])
