"""`netplug dns`, against a daemon on a fake kernel."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from living import Living, living
from test_cli import Cli

from netplug.cli import NO, USAGE


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Living]:
    with living(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def cli(daemon: Living, capsys: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(daemon.settings.run_dir, capsys)
    for network, subnet in (("blue", "10.1.0.0/24"), ("red", "10.2.0.0/24")):
        cli("network", "create", network, "--subnet", subnet)
    cli("attach", "blue", "--netns", "c1", "--name", "web", "--alias", "www", "--publish", "18080:80")
    cli("attach", "red", "--netns", "c2", "--name", "db")
    return cli


def test_ls_shows_who_is_called_what(cli: Cli) -> None:
    (web,) = cli.json("dns", "ls", "--network", "blue")
    assert list(web) == ["network", "names", "addresses", "services", "healthy", "endpoint"]
    assert (web["network"], web["names"], web["services"]) == ("blue", ["web", "www"], ["http/tcp:80"])
    assert [one["names"][0] for one in cli.json("dns", "ls")] == ["web", "db"]
    text = cli("dns", "ls")
    assert all(word in text for word in ("web", "www", "http/tcp:80", "db", web["addresses"][0]))
    assert "no-such" in cli("dns", "ls", "--network", "no-such", code=NO)


def test_query_sees_what_a_container_of_the_networks_does(cli: Cli) -> None:
    (web,) = cli.json("dns", "ls", "--network", "blue")
    address = web["addresses"][0]
    found = cli.json("dns", "query", "WEB", "--network", "blue")
    assert found == {"code": "NOERROR", "answers": [{"name": "WEB", "type": "A", "ttl": 5, "data": address}]}
    assert address in cli("dns", "query", "www.blue.netplug.internal", "a", "--network", "blue")
    assert "web.blue.netplug.internal" in cli("dns", "query", address, "--network", "blue")
    assert "80 web" in cli("dns", "query", "_http._tcp.web", "SRV", "--network", "blue")
    assert "NXDOMAIN" in cli("dns", "query", "db", "--network", "blue", code=NO)
    assert cli("dns", "query", "db", "--network", "blue", "--network", "red")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["db"], "NXDOMAIN: names of one label are not forwarded"),
        (["nosuch.blue"], "NXDOMAIN: no container in the client's networks has this name"),
        (["web", "TXT"], "NOERROR: the name has no records of this type"),
        (["x.local"], "NXDOMAIN: special-use domain names are not forwarded"),
        (["web.blue", "AXFR"], "REFUSED: nobody is asked for this name from here"),
    ],
)
def test_query_says_in_words_why_there_is_nothing(cli: Cli, args: list[str], words: str) -> None:
    assert cli("dns", "query", *args, "--network", "blue", code=NO).strip() == words


def test_stats_are_of_each_network(cli: Cli) -> None:
    none = {"answers": {}, "outward": 0, "strangers": 0, "dropped": 0, "faults": 0}
    assert cli.json("dns", "stats") == [{"network": name, **none} for name in ("blue", "red")]
    assert cli.json("dns", "stats", "--network", "red") == [{"network": "red", **none}]
    text = cli("dns", "stats").lower()
    assert all(word in text for word in ("blue", "red", "noerror", "outward"))
    assert "no-such" in cli("dns", "stats", "--network", "no-such", code=NO)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["web", "NOTYPE", "--network", "blue"], "'NOTYPE' is no type of records"),
        (["a" * 64, "--network", "blue"], "is not a domain name"),
        (["web", "--network", "green"], "there is no network 'green'"),
    ],
)
def test_query_that_means_nothing_is_refused(cli: Cli, args: list[str], words: str) -> None:
    assert words in cli("dns", "query", *args, code=NO)


def test_query_needs_a_network(cli: Cli) -> None:
    assert "--network" in cli("dns", "query", "web", code=USAGE)


def test_network_without_names_answers_nobody(cli: Cli) -> None:
    cli("network", "create", "mute", "--subnet", "10.3.0.0/24", "-o", "dns=off")
    cli("attach", "mute", "--netns", "c3", "--name", "web")
    assert cli.json("dns", "ls", "--network", "mute") == []
    said = cli("dns", "query", "web", "--network", "mute", code=NO)
    assert "REFUSED: no names of this network are served (dns=off)" in said
