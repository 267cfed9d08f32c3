"""Completion in real shells: what Tab makes of a line, with names that a living daemon knows."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from living import Living, living

from netplug.cli import COMPLETE, main
from netplug.cli.command_tree import commands
from netplug.cli.completion import kinds, values
from netplug.cli.completion.command import SHELLS, script
from netplug.cli.top import ORDERS

PACKAGING = Path(__file__).parent.parent / "packaging"
BIN = str(Path(sys.executable).parent)
ROOT = commands()
DEADLINE_S = 30
"""A shell with its completions starts in 0.1 s on an idle machine."""

SETUP = {
    "bash": """
        PS1=READY
        bind 'set enable-bracketed-paste off'
        show() {{ printf '%s' "$READLINE_LINE" >{out}.part; mv {out}.part {out}; }}
        bind -x '"\\C-xs": show'
        source {script}
        """,
    "zsh": """
        autoload -U compinit; compinit -u -D
        PS1=READY; unsetopt zle_bracketed_paste 2>/dev/null; unset zle_bracketed_paste
        show() {{ print -rn -- "$BUFFER" >{out}.part; mv {out}.part {out} }}
        zle -N show; bindkey '^Xs' show
        source {script}
        """,
}
SETUP["zsh-fpath"] = (
    SETUP["zsh"].replace("autoload", "fpath=({folder} $fpath); autoload", 1).replace("source {script}", "")
)
START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"], "zsh-fpath": ["zsh", "-f", "-i"]}

LINES = [
    ("netplug netw", "netplug network "),
    ("netplug network crea", "netplug network create "),
    ("netplug network create --mo", "netplug network create --mode "),
    ("netplug network create --mode ov", "netplug network create --mode overlay "),
    ("netplug network create red -o macvlan_m", "netplug network create red -o macvlan_mode="),
    ("netplug network update blue --internal fa", "netplug network update blue --internal false "),
    ("netplug network rm bl", "netplug network rm blue "),
    ("netplug network rm blue gr", "netplug network rm blue green "),
    ("netplug ps --network bl", "netplug ps --network blue "),
    ("netplug capture we", "netplug capture web "),
    ("netplug trace web d", "netplug trace web db "),
    ("netplug capture blue/tw", "netplug capture blue/twin "),
    ("netplug completion fi", "netplug completion fish "),
    ("netplug network rm nobody", "netplug network rm nobody"),
]
"""What is typed, and what the line is after Tab. There is one `web`, one `db`, and a `twin` in both networks."""


class Terminal:
    """A shell at a terminal, whose line it tells."""

    def __init__(self, shell: str, folder: Path, run_dir: Path) -> None:
        self._out = folder / "line"
        setup = folder / "setup"
        file = folder / "_netplug"
        file.write_text(script(shell.partition("-")[0]))
        setup.write_text(SETUP[shell].format(out=self._out, script=file, folder=folder))
        environment = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(folder),
            "TERM": "vt100",
            "NETPLUG_RUN_DIR": str(run_dir),
        }
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execvpe(START[shell][0], START[shell], environment)  # noqa: S606 - a terminal of its own
        self._said = ""
        self._send(f"source {setup}\r")
        self._until(lambda: "READY" in self._said)

    def completed(self, line: str) -> str:
        """Type a line and Tab, and return what the line is then."""
        self._out.unlink(missing_ok=True)
        self._send(f"{line}\t\x18s")
        self._until(self._out.exists)
        self._send("\x15")  # Ctrl-U: an empty line
        return self._out.read_text()

    def close(self) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)
        os.close(self._fd)

    def _send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def _until(self, done: Any) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline, self._said
            if select.select([self._fd], [], [], 0.05)[0]:
                self._said += os.read(self._fd, 4096).decode(errors="replace")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    with living(tmp_path_factory.mktemp("completion")) as daemon:
        for name in ("blue", "green"):
            daemon.client.post("networks", body={"name": name})
        ends = (("blue", "web"), ("green", "db"), ("blue", "twin"), ("green", "twin"))
        for index, (network, name) in enumerate(ends):
            daemon.client.post(
                "attach", body={"network": network, "netns": f"c{index}", "ifname": "eth0", "name": name}
            )
        yield daemon


@pytest.fixture(scope="module", params=sorted(START))
def terminal(
    request: pytest.FixtureRequest, daemon: Living, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    if which(START[request.param][0]) is None:
        pytest.skip(f"there is no {START[request.param][0]} here")
    terminal = Terminal(request.param, tmp_path_factory.mktemp(request.param), daemon.settings.run_dir)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("typed", "line"), LINES, ids=[typed for typed, _ in LINES])
def test_tab_completes_a_line(terminal: Terminal, typed: str, line: str) -> None:
    assert terminal.completed(typed) == line


@pytest.mark.skipif(which("fish") is None, reason="there is no fish here")
@pytest.mark.parametrize(("typed", "line"), LINES, ids=[typed for typed, _ in LINES])
def test_fish_completes_a_line(daemon: Living, tmp_path: Path, typed: str, line: str) -> None:
    (tmp_path / "script").write_text(script("fish"))
    code = f"source {tmp_path}/script; complete -C {typed!r}"
    environment = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "NETPLUG_RUN_DIR": str(daemon.settings.run_dir),
    }
    done = subprocess.run(["fish", "-c", code], check=True, capture_output=True, text=True, env=environment)
    wanted = [] if line == typed else [line.rsplit(maxsplit=1)[-1]]
    assert [row.partition("\t")[0] for row in done.stdout.splitlines()] == wanted, done.stderr


def test_values_are_names_with_what_they_are(
    daemon: Living, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETPLUG_RUN_DIR", str(daemon.settings.run_dir))
    assert main([COMPLETE, "endpoints"]) == 0
    rows = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert set(rows) == {"web", "db", "blue/twin", "green/twin"}
    assert re.fullmatch(r"blue 10\.\S+", rows["web"])


@pytest.mark.parametrize("words", [["networks"], ["hosts"], ["nonsense"], []], ids=repr)
def test_without_a_daemon_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("NETPLUG_RUN_DIR", str(tmp_path))
    assert main([COMPLETE, *words]) == 0
    assert capsys.readouterr() == ("", "")


def test_names_that_a_shell_would_take_for_its_own_are_not_offered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"name": name, "mode": "bridge", "subnets": []} for name in ("$(reboot)", "a b", "fine", "-x;y", "`id`")]
    monkeypatch.setattr(values, "_ask", lambda *_: rows)
    assert main([COMPLETE, "networks"]) == 0
    assert capsys.readouterr().out == "fine\tbridge\n"


def test_completing_a_value_imports_no_command() -> None:
    """A user waits for it: 40 ms here, of which Python takes half."""
    code = f"import sys; from netplug.cli import main; main([{COMPLETE!r}, 'networks']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"NETPLUG_RUN_DIR": "/nowhere"}
    )
    assert not {"typer", "rich", "pydantic", "netplug.cli.app"} & set(done.stdout.split())


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_know_each_command_and_flag(shell: str) -> None:
    text = script(shell)
    for command in ROOT.walk():
        assert command.path[-1] in text
        for option in command.options:
            for flag in option.flags:
                named = flag if shell != "fish" else f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                assert named in text, (command.words, flag)


def test_words_that_are_offered_are_taken() -> None:
    offered = {
        metavar: kinds.value(metavar).words for metavar in ("MODE", "FORMAT", "LEVEL", "WHERE", "SHELL", "ORDER")
    }
    described = {it.metavar: it.help for command in ROOT.walk() for it in command.options}
    described["SHELL"] = ", ".join(SHELLS)
    assert offered["ORDER"] == tuple(ORDERS)
    for metavar, words in offered.items():
        assert words, metavar
        assert all(word in described[metavar] for word in words), metavar


def test_files_for_packages_have_the_names_that_shells_look_for(tmp_path: Path) -> None:
    subprocess.run([sys.executable, PACKAGING / "completion.py", tmp_path], check=True)
    found = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"bash/netplug": script("bash"), "zsh/_netplug": script("zsh"), "fish/netplug.fish": script("fish")}


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "netplug: shell 'tcsh' is not one of bash, zsh, fish\n"
