"""The graph as an SVG image of its own: a column for each host, a band for each network, a box for each endpoint.

A network on several hosts is one line through their columns. A container in several networks has a box in each, joined
by a line. The image follows the reader's dark or light, and needs no font of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from netplug.insight.drawing import all_hosts, by_network, fill, printable
from netplug.insight.graph import Container, Endpoint, Graph, Host, Network

BOX_W, BOX_H, GAP = 158, 38, 8
ACROSS = 3
"""Boxes beside each other in a column, at most."""
PAD, LABEL_W, HEAD_H, LINE_H = 14, 210, 58, 16
_STYLE = """
svg{--bg:#fff;--band:#f4f6f8;--ink:#1c2733;--dim:#5d6b7a;--edge:#c9d2dc;--box:#fff;--net:#2f6f9f;--bad:#b3261e}
@media(prefers-color-scheme:dark){
svg{--bg:#12171d;--band:#1a2129;--ink:#e3e9ef;--dim:#93a1b0;--edge:#35414d;--box:#202932;--net:#6fb1e0;--bad:#ff8a80}}
text{font:13px system-ui,"Segoe UI","DejaVu Sans",sans-serif;fill:var(--ink)}
.name{font-weight:600}.dim,.mono{fill:var(--dim);font-size:11px}.mono{font-family:monospace,"DejaVu Sans Mono"}
.bg{fill:var(--bg)}.band{fill:var(--band)}.host{fill:none;stroke:var(--edge)}.box{fill:var(--box);stroke:var(--edge)}
.bad{stroke:var(--bad)}text.bad{fill:var(--bad);stroke:none;font-size:11px}.line{stroke:var(--net);stroke-width:2.5;fill:none}
.tie{stroke:var(--net);stroke-width:1.25;stroke-dasharray:3 3;fill:none}
""".strip()


@dataclass(frozen=True, slots=True)
class _Box:
    x: int
    y: int
    container: Container
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class _Band:
    y: int
    height: int
    network: Network
    boxes: tuple[_Box, ...]


class _Layout:
    """Places everything. Sizes follow from the fullest cell of each column."""

    def __init__(self, graph: Graph) -> None:
        self.hosts = all_hosts(graph)
        rows = [(network, {host.name: members for host, members in places}) for network, places in by_network(graph)]
        self.columns: dict[str, tuple[int, int]] = {}
        x = PAD + LABEL_W
        for host in self.hosts:
            most = max((len(cells.get(host.name, ())) for _, cells in rows), default=0)
            across = min(max(most, 1), ACROSS)
            width = across * BOX_W + (across - 1) * GAP + 2 * PAD
            self.columns[host.name] = (x, width)
            x += width + PAD
        self.width = x
        self.bands: list[_Band] = []
        y = HEAD_H
        for network, cells in rows:
            band = self._band(y, network, cells)
            self.bands.append(band)
            y += band.height + GAP
        self.height = y + PAD

    def _band(self, y: int, network: Network, cells: dict[str, list[tuple[Container, Endpoint]]]) -> _Band:
        boxes, most = list[_Box](), 0
        top = y + 2 * PAD
        for name, members in cells.items():
            x, width = self.columns[name]
            across = (width - 2 * PAD + GAP) // (BOX_W + GAP)
            for place, (container, endpoint) in enumerate(members):
                at = x + PAD + place % across * (BOX_W + GAP), top + place // across * (BOX_H + GAP)
                boxes.append(_Box(*at, container, endpoint))
            most = max(most, -(-len(members) // across))
        label = PAD + LINE_H * (2 + len(network.subnets))
        return _Band(y, max(2 * PAD + most * (BOX_H + GAP) + PAD - GAP, label), network, tuple(boxes))


def svg(graph: Graph) -> str:
    """Return the image."""
    layout = _Layout(graph)
    size = f'width="{layout.width}" height="{layout.height}" viewBox="0 0 {layout.width} {layout.height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="networks of {_text(_names(layout))}">'
    ]
    lines += [f"<style>{_STYLE}</style>", f'<rect class="bg" width="{layout.width}" height="{layout.height}"/>']
    for band in layout.bands:
        lines.append(_rect("band", PAD, band.y, layout.width - 2 * PAD, band.height))
    for host in layout.hosts:
        lines += _host(host, *layout.columns[host.name], layout.height)
    for band in layout.bands:
        lines += _label(band)
        lines += _line(band, layout)
    lines += _ties(layout)
    for band in layout.bands:
        for box in band.boxes:
            lines += _box(box)
    return "\n".join([*lines, "</svg>"])


def _names(layout: _Layout) -> str:
    return ", ".join(host.name for host in layout.hosts)


def _host(host: Host, x: int, width: int, height: int) -> Iterator[str]:
    bad = " bad" if not host.alive else ""
    yield _rect(f"host{bad}", x, PAD, width, height - 2 * PAD)
    yield _words("name", x + PAD, PAD + 20, host.name, width - 2 * PAD)
    state = "this host" if host.me else "" if host.alive else "not alive"
    kind = "bad" if not host.alive else "dim"
    yield _words(kind, x + PAD, PAD + 36, " · ".join(filter(None, (host.address, state))), width - 2 * PAD)


def _label(band: _Band) -> Iterator[str]:
    network, x, y = band.network, 2 * PAD, band.y + PAD + 6
    yield _words("name", x, y, network.name, LABEL_W - 2 * PAD)
    kind = " · ".join((network.mode, *(["internal"] if network.internal else []), f"mtu {network.mtu}"))
    yield _words("dim", x, y + LINE_H, kind, LABEL_W - 2 * PAD)
    for place, words in enumerate(fill(network)):
        yield _words("mono", x, y + LINE_H * (2 + place), words, LABEL_W - 2 * PAD)


def _line(band: _Band, layout: _Layout) -> Iterator[str]:
    """Draw a network through the columns of its hosts."""
    places = [layout.columns[name] for name in band.network.hosts if name in layout.columns]
    if places:
        left, right = min(x for x, _ in places) + PAD, max(x + width for x, width in places) - PAD
        yield f'<path class="line" d="M{left} {band.y + PAD}H{right}"/>'
        for box in band.boxes:
            yield f'<path class="line" d="M{box.x + BOX_W // 2} {band.y + PAD}V{box.y}"/>'


def _ties(layout: _Layout) -> Iterator[str]:
    last: dict[str, _Box] = {}
    for band in layout.bands:
        for box in band.boxes:
            if former := last.get(box.container.key):
                x, y, to = former.x + 12, former.y + BOX_H, box.x + 12
                yield f'<path class="tie" d="M{x} {y}C{x} {y + 30} {to} {box.y - 30} {to} {box.y}"/>'
            last[box.container.key] = box


def _box(box: _Box) -> Iterator[str]:
    addresses = " ".join(box.endpoint.addresses)
    full = [box.container.name, addresses, *box.endpoint.ports, *([] if box.endpoint.healthy else ["unhealthy"])]
    yield f"<g><title>{_text(chr(10).join(filter(None, full)))}</title>"
    yield _rect("box" if box.endpoint.healthy else "box bad", box.x, box.y, BOX_W, BOX_H)
    yield _words("name", box.x + 9, box.y + 16, box.container.name, BOX_W - 18)
    yield _words("mono", box.x + 9, box.y + 31, addresses or "no address", BOX_W - 18)
    yield "</g>"


def _rect(kind: str, x: int, y: int, width: int, height: int) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'


def _words(kind: str, x: int, y: int, words: str, width: int) -> str:
    """Return a text, cut to a width by the mean width of a character."""
    most = int(width / {"name": 7.6, "mono": 6.7}.get(kind, 6.2))
    return (
        f'<text class="{kind}" x="{x}" y="{y}">{_text(words if len(words) <= most else words[: most - 1] + "…")}</text>'
    )


def _text(words: str) -> str:
    """Escape a text; what XML cannot say is shown as U+FFFD."""
    return escape("\n".join(map(printable, words.split("\n"))), {'"': "&quot;"})
