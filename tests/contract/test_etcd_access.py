"""Who may use an etcd: certificates and passwords, right and wrong, on real servers."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from etcd_server import Member, needs_etcd, running
from structlog.testing import capture_logs

pytest.register_assert_rewrite("store_suite")

from store_suite import keys, put, take  # noqa: E402

from netplug.store.access import EtcdAccess, without_password  # noqa: E402
from netplug.store.api import StoreError  # noqa: E402
from netplug.store.encoding import prefix_end  # noqa: E402
from netplug.store.etcd import ROOT, EtcdStore  # noqa: E402
from netplug.store.etcd_records import b64  # noqa: E402

EXTENSIONS = "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
PASSWORD = "s3cret pass/word@"  # noqa: S105 - of a server that lives for a second


@dataclass(frozen=True)
class Authority:
    """A private CA."""

    folder: Path
    name: str

    @property
    def ca(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @classmethod
    def make(cls, folder: Path, name: str) -> "Authority":
        authority = cls(folder, name)
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(folder / f"{name}.key"), "-out", str(authority.ca)),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),  # RFC 5280 §4.2.1.3; Python 3.13 insists
        )
        return authority

    def issue(self, name: str, extensions: str = EXTENSIONS) -> tuple[Path, Path]:
        """Return certificate and key."""
        cert, key, request, text = (
            self.folder / f"{self.name}-{name}.{ending}" for ending in ("pem", "key", "csr", "ext")
        )
        text.write_text(extensions)
        openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self.ca.with_suffix(".key"))),
            *("-CAcreateserial", "-days", "2", "-extfile", str(text), "-out", str(cert)),
        )
        return cert, key


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ca"), "theirs")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    with running(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, ours: Authority) -> Iterator[Member]:
    """A server with TLS that asks for a certificate."""
    cert, key = ours.issue("server")
    flags = ("--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth", "--trusted-ca-file", str(ours.ca))
    with running(tmp_path_factory.mktemp("etcd"), *flags, tls=True) as (member,):
        yield member


@pytest.fixture(scope="module")
def client(ours: Authority) -> tuple[Path, Path]:
    return ours.issue("client", "extendedKeyUsage=clientAuth\n")


async def refusal(access: EtcdAccess, deadline_s: float = 4) -> str:
    """Return why a check fails, which it does at once."""
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        await opened(access, deadline_s)
    assert time.monotonic() - began < 3, str(caught.value)
    return str(caught.value)


async def opened(access: EtcdAccess, deadline_s: float) -> None:
    store = await EtcdStore.open(access, deadline_s=deadline_s)
    try:
        await store.check()
    finally:
        await store.close()


@needs_etcd
async def test_both_sides_show_a_certificate(tls: Member, ours: Authority, client: tuple[Path, Path]) -> None:
    store = await EtcdStore.open(EtcdAccess((tls.host,), ours.ca, *client))
    _, start = await store.range("")
    await put(store, "a")
    assert [event.key for event in await take(store.watch("", start), 1)] == ["a"]
    lease = await store.lease(5)
    assert await store.keep_alive(lease)
    await store.close()


@needs_etcd
async def test_a_server_of_another_authority_is_refused(
    tls: Member, theirs: Authority, client: tuple[Path, Path]
) -> None:
    text = await refusal(EtcdAccess((tls.host,), theirs.ca, *client))
    assert f"{tls.url}: its certificate is refused: " in text
    assert "check --etcd-ca" in text


@needs_etcd
async def test_the_name_in_the_servers_certificate_counts(tmp_path: Path, ours: Authority) -> None:
    cert, key = ours.issue("elsewhere", "subjectAltName=DNS:localhost\n")
    flags = ("--cert-file", str(cert), "--key-file", str(key))
    with running(tmp_path, *flags, tls=True) as (member,):
        assert "127.0.0.1" in (text := await refusal(EtcdAccess((member.host,), ours.ca)))
        assert "its certificate is refused: ip address mismatch" in text.lower()
        named = await EtcdStore.open(EtcdAccess((f"localhost:{member.client_port}",), ours.ca))
        await put(named, "a")
        await named.close()


@needs_etcd
async def test_a_server_that_asks_for_a_certificate_refuses_who_has_none(tls: Member, ours: Authority) -> None:
    text = await refusal(EtcdAccess((tls.host,), ours.ca))
    assert "refuses our certificate" in text
    assert "check --etcd-cert and --etcd-key" in text


@needs_etcd
async def test_a_certificate_of_another_authority_is_refused_by_the_server(
    tls: Member, ours: Authority, theirs: Authority
) -> None:
    text = await refusal(EtcdAccess((tls.host,), ours.ca, *theirs.issue("client")))
    assert "refuses our certificate" in text


@needs_etcd
async def test_a_server_whose_certificate_is_for_servers_alone_is_explained(
    tmp_path: Path, ours: Authority, client: tuple[Path, Path]
) -> None:
    cert, key = ours.issue("narrow", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    flags = ("--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth", "--trusted-ca-file", str(ours.ca))
    with running(tmp_path, *flags, tls=True) as (member,):
        assert "the server's own certificate needs the extended key usage clientAuth" in await refusal(
            EtcdAccess((member.host,), ours.ca, *client), deadline_s=0.5
        )


@needs_etcd
async def test_tls_on_one_side_only_is_said_so(tls: Member, plain: Member, ours: Authority) -> None:
    assert "if it has TLS, set --etcd-ca" in await refusal(EtcdAccess((tls.host,)), deadline_s=0.5)
    assert "if it has no TLS, remove --etcd-ca" in await refusal(EtcdAccess((plain.host,), ours.ca), deadline_s=0.5)


async def test_files_that_are_not_what_they_should_be_are_named(
    tmp_path: Path, ours: Authority, client: tuple[Path, Path]
) -> None:
    absent, text = tmp_path / "absent.pem", tmp_path / "text.pem"
    text.write_text("not a certificate")
    cert, key = client
    access = EtcdAccess(("127.0.0.1:1",), ours.ca, cert, key)
    assert await refusal(replace(access, ca=absent)) == (
        f"etcd ca file {absent} cannot be read: no such file or directory"
    )
    assert f"etcd ca file {text} cannot be read: not a PEM file" in await refusal(replace(access, ca=text))
    assert f"etcd certificate {absent} with key {key}" in await refusal(replace(access, cert=absent))
    other = await refusal(replace(access, key=ours.issue("other")[1]))
    assert "not a PEM file that can be used (key values mismatch)" in other


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Member]:
    """A server to switch authentication on."""
    with running(tmp_path) as (member,):
        yield member


ADMIN_PASSWORD = "admin"  # noqa: S105 - as above


async def guard(member: Member, permission: str = "READWRITE") -> None:
    """Make user np, who has a role on netplug's prefix, and switch authentication on."""
    store = await EtcdStore.open(EtcdAccess((member.host,)))
    root = ROOT.encode()
    for path, body in (
        ("user/add", {"name": "root", "password": ADMIN_PASSWORD}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("role/add", {"name": "netplug"}),
        (
            "role/grant",
            {"name": "netplug", "perm": {"permType": permission, "key": b64(root), "range_end": b64(prefix_end(root))}},
        ),
        ("user/add", {"name": "np", "password": PASSWORD}),
        ("user/grant", {"user": "np", "role": "netplug"}),
        ("auth/enable", {}),
    ):
        await store._call(f"/v3/auth/{path}".replace("auth/auth", "auth"), body)
    await store.close()


@needs_etcd
async def test_a_user_with_a_role_on_the_prefix_works_and_outlives_its_tokens(guarded: Member) -> None:
    await guard(guarded)
    access = EtcdAccess((guarded.host,), user="np", password=PASSWORD)
    store = await EtcdStore.open(access, progress_s=0.2)
    start = await put(store, "a")
    watch = store.watch("", start)
    for n in range(2):
        token = store._gateway._token
        await _end_tokens(guarded)
        await put(store, f"b/{n}")
        assert store._gateway._token != token
        assert [event.key for event in await take(watch, 1)] == [f"b/{n}"]
    await _end_tokens(guarded)  # also a watch may be the first to meet it
    assert [event.key for event in await take(store.watch("b/", start), 2)] == ["b/0", "b/1"]
    await put(store, "b/2")
    assert [event.key for event in await take(watch, 1)] == ["b/2"]
    assert await keys(store, "b/") == ["b/0", "b/1", "b/2"]
    await store.close()


async def _end_tokens(member: Member) -> None:
    """Let the server forget np's tokens, as it does after their time (etcd: --auth-token-ttl) and with each change."""
    admin = await EtcdStore.open(EtcdAccess((member.host,), user="root", password=ADMIN_PASSWORD))
    await admin._call("/v3/auth/user/changepw", {"name": "np", "password": PASSWORD})
    await admin.close()


@needs_etcd
async def test_wrong_and_missing_credentials_are_told_apart(guarded: Member) -> None:
    await guard(guarded, "READ")
    access = EtcdAccess((guarded.host,), user="np", password=PASSWORD)
    for wrong in (replace(access, password="other"), replace(access, user="nobody")):  # noqa: S106
        text = await refusal(wrong)
        assert text == (
            f"etcd store {wrong} refuses: user {wrong.user!r} or the password is wrong; check NETPLUG_ETCD_PASSWORD"
        )
    assert "it requires authentication; set NETPLUG_ETCD_USER" in await refusal(EtcdAccess((guarded.host,)))
    reader = await EtcdStore.open(access)
    assert await keys(reader, "") == []
    with pytest.raises(StoreError, match="'np' lacks permission; grant its role readwrite on netplug's prefix"):
        await put(reader, "a")
    await reader.close()
    elsewhere = await EtcdStore.open(access, root="/other/")
    watch = elsewhere.watch("", 0)
    for call in (elsewhere.get("a"), anext(watch), anext(watch)):
        with pytest.raises(StoreError, match="lacks permission"):
            await call
    await elsewhere.close()


@needs_etcd
async def test_authentication_switched_on_later_is_met_by_a_log_in(guarded: Member) -> None:
    access = EtcdAccess((guarded.host,), user="np", password=PASSWORD)
    with capture_logs() as logs:
        store = await EtcdStore.open(access)
        await put(store, "a")
        await put(store, "b")
    assert [entry["event"] for entry in logs] == ["store.authentication_disabled"]
    await guard(guarded)
    await put(store, "c")
    assert await keys(store, "") == ["a", "b", "c"]
    await store.close()


def test_urls_are_read() -> None:
    parse = EtcdAccess.parse
    assert parse("etcd://a:1,b-2.example:65535,[fd00::1]:2379/").urls == (
        "http://a:1",
        "http://b-2.example:65535",
        "http://[fd00::1]:2379",
    )
    access = replace(parse("etcd://u%3A:p%40%2F@h:1"), ca=Path("/ca"))
    assert (access.user, access.password, access.urls) == ("u:", "p@/", ("https://h:1",))
    assert str(access) == "etcd://u%3A@h:1"
    assert "p@/" not in repr(access)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("etcd://", "not of the form"),
        ("http://a:1", "not of the form"),
        ("etcd://a", "endpoint 'a', not of the form"),
        ("etcd://a:", "endpoint 'a:', not of the form"),
        ("etcd://a:0", "endpoint 'a:0'"),
        ("etcd://a:65536", "endpoint 'a:65536'"),
        ("etcd://a:1,", "endpoint ''"),
        ("etcd://a:1,http://b:1", "endpoint 'http://b:1'"),
        ("etcd://a:1,a:1", "twice"),
        ("etcd://a:1/path", "endpoint 'a:1/path'"),
        ("etcd://[::g]:1", "endpoint '[::g]:1'"),
        ("etcd://::1:1", "endpoint '::1:1'"),
        ("etcd://user@a:1", "no user and password"),
        ("etcd://:pw@a:1", "no user and password"),
        ("etcd://@a:1,", "endpoint ''"),
    ],
)
def test_what_is_no_url_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        EtcdAccess.parse(url)
    assert words in str(caught.value)
    assert "pw" not in without_password(url)
