"""The text of the CNI executable that `netplug cni install` writes.

A runtime waits for it at each command, and most of that time an interpreter starts: Python takes 5 ms, Perl, which is
on every Debian, 1.4 ms (bench/cni.py). So where there is a Perl it takes what was given to the daemon and prints the
answer; all else (no daemon, ``VERSION``, netavark) it leaves to `netplug.cni_shim`, in the system's Python or our own.
"""

import sys
from pathlib import Path

from netplug import cni_shim

PERL = Path("/usr/bin/perl")
PYTHON = Path("/usr/bin/python3")
"""The system's starts faster than one in a virtual environment."""
_LEAST = (3, 8)

# The protocol is that of `cni_shim`. 1: AF_UNIX, and SOCK_STREAM but on MIPS, where Python does it all.
_HANDING_ON = """\
#!{perl}
# Written by 'netplug cni install'.
$SIG{{PIPE}} = 'IGNORE';
binmode($_) for *STDIN, *STDOUT, *STDERR;
my ($name) = $0 =~ m{{([^/]*)$}};
my $command = $ENV{{CNI_COMMAND}} // '';
my ($daemon, $again);
my $dir = $ENV{{NETPLUG_RUN_DIR}} || {run_dir};
if ($command ne '' && $command ne 'VERSION' && socket($daemon, 1, 1, 0)
    && connect($daemon, pack('S a*', 1, "$dir/{socket}\\0"))) {{
    local $/;
    my $given = <STDIN> // '';
    my @words = ($name, map({{ "$_=$ENV{{$_}}" }} grep(/^CNI_/, keys %ENV)), '', $given);
    my ($request, $reply) = (join("\\0", @words), '');
    while (length $request) {{
        my $sent = syswrite($daemon, $request) or last;
        substr($request, 0, $sent) = '';
    }}
    shutdown($daemon, 1);
    1 while sysread($daemon, $reply, 65536, length $reply);
    if ($reply =~ s/^(\\d+) (\\d+)\\n//) {{
        my ($code, $length) = ($1, $2);
        print substr($reply, 0, $length);
        print STDERR substr($reply, $length);
        exit $code;
    }}
    # It died over this: what it was given is given again.
    open($again, '+>', undef) && print($again $given) && seek($again, 0, 0) && open(STDIN, '<&', $again);
}}
exec {{{python}}} {python}, '-IS', '-c', {code}, $name, @ARGV;
my $words = "no netplug daemon answers, and {python_plain} cannot be started: $!";
print $command eq '' ? qq({{"error":"$words"}}\\n) : qq({{"code":11,"msg":"$words"}}\\n);
exit 1;
"""


def executable(run_dir: Path) -> str:
    """Return the executable's text, too short to take time: it is compiled at each start. `run_dir`: of the daemon."""
    folder = str(Path(cni_shim.__file__).parent)
    begin = f"import sys; sys.path.insert(0, {folder!r}); import cni_shim"
    run = f"cni_shim.run({str(run_dir)!r}, {sys.executable!r})"
    python = _python()
    if not PERL.exists():
        return f"#!{python} -IS\n# Written by 'netplug cni install'.\n{begin}\n{run}\n"
    return _HANDING_ON.format(
        perl=PERL,
        run_dir=_quoted(str(run_dir)),
        socket=cni_shim.SOCKET,
        python=_quoted(python),
        python_plain=python,
        # Behind -c the executable's name is the first argument.
        code=_quoted(f"{begin}; del sys.argv[0]; {run}"),
    )


def _python() -> str:
    """Return the system's Python if it will do, else our own."""
    try:
        # Debian's /usr/bin/python3 is a link to python3.11.
        version = tuple(int(part) for part in PYTHON.resolve(strict=True).name.removeprefix("python").split("."))
    except (OSError, ValueError):
        version = ()
    return str(PYTHON) if version >= _LEAST else sys.executable


def _quoted(text: str) -> str:
    """Return a string literal of Perl."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
