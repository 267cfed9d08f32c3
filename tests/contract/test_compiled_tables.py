"""Tables that were compiled beforehand are what libnftables makes of their texts. ``--update`` writes them anew."""

import os
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from netplug.drivers.tables import text as text_of
from netplug.kernel.firewall import compiled_tables, compiler, libnftables

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
    pytest.mark.skipif(sys.byteorder != "little", reason="they are for little-endian hosts"),
]
UNKNOWN = 'chain mine {\ntype filter hook input priority 0; policy accept;\niifname "lo" accept\n}'


def test_file_has_what_libnftables_makes_of_the_texts(request: pytest.FixtureRequest) -> None:
    said = compiled_tables.written((*it, compiler.by_nft(*it)) for it in compiled_tables.texts())
    path = Path(str(files("netplug.kernel.firewall"))) / compiled_tables.FILE
    if request.config.getoption("--update"):
        path.write_text(said)
    assert path.read_text() == said, "run: pytest tests/contract/test_compiled_tables.py --update"


@pytest.mark.parametrize(("family", "name"), compiled_tables.TEXTS)
def test_what_was_compiled_beforehand_is_what_nft_makes(family: str, name: str) -> None:
    compiler.forget()
    assert compiler.compiled(family, text_of(name)).digest == compiler.by_nft(family, text_of(name)).digest


@pytest.fixture
def _no_libnftables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    compiler.forget()
    libnftables._library.cache_clear()
    monkeypatch.setattr(libnftables, "_NAME", "libnothing.so.7")
    yield
    libnftables._library.cache_clear()


@pytest.mark.usefixtures("_no_libnftables")
def test_host_without_libnftables_makes_our_tables_and_refuses_others() -> None:
    for family, name in compiled_tables.TEXTS:
        assert compiler.compiled(family, text_of(name)).chains
    with pytest.raises(compiler.CompileError) as caught:
        compiler.compiled("inet", UNKNOWN)
    assert caught.value.missing
