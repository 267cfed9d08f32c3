"""A small disk of a host for one folder: to be filled, and to be mounted read-only."""

from pathlib import Path

from .host import Host


class Volume:
    """A tmpfs on a folder of a host, which only the host sees."""

    def __init__(self, host: Host, folder: Path, size_kb: int = 16 << 10) -> None:
        self.host = host
        self.folder = folder
        folder.mkdir(exist_ok=True)
        host.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k,mode=0700", "volume", str(folder)])

    @property
    def seen(self) -> Path:
        """The folder from outside."""
        return self.host.path(self.folder)

    def fill(self) -> None:
        """Leave no byte free."""
        script = f"cat /dev/zero >{self.folder}/ballast 2>/dev/null || test $(stat -f -c %f {self.folder}) = 0"
        self.host.run(["sh", "-ec", script])

    def empty(self) -> None:
        """Take away what filled it."""
        self.host.run(["rm", "-f", f"{self.folder}/ballast"])

    def read_only(self, *, is_so: bool = True) -> None:
        """Mount it so, or back. No file may be open to write."""
        self.host.run(["mount", "-o", f"remount,{'ro' if is_so else 'rw'}", str(self.folder)])


class Disk:
    """An ext4 on a loop device, on a folder of a host: it becomes read-only when it finds an error."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.image = host.dir / "disk.img"
        folder.mkdir(exist_ok=True)
        host.run(["sh", "-ec", f"truncate -s 32M {self.image}; mkfs.ext4 -q {self.image}"])
        self.mount()

    def mount(self) -> None:
        self.host.run(["mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.folder)])

    def fail(self) -> None:
        """Have it find an error."""
        device = Path(self.host.output("findmnt", "-no", "SOURCE", str(self.folder))).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")

    def mend(self) -> None:
        """Do what an administrator does. No file may be open."""
        self.host.run(["umount", str(self.folder)])
        assert self.host.run(["e2fsck", "-fy", str(self.image)], check=False).returncode in {0, 1}
        self.mount()
