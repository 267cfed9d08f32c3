// Draws the graph as SVG, and moves in it by keys. Nodes are kept between updates: an update touches what differs.

import { list, say, set, svg } from "./dom.js";
import { matches } from "./filter.js";
import { layout } from "./layout.js";

const FEW_TIES = 24;

export class Topology {
  /** `chosen`: gets the box that a click or a key selects; `cleared`: is called by Escape. */
  constructor(place, chosen, cleared) {
    this.place = place;
    this.chosen = chosen;
    this.cleared = cleared;
    this.layers = Object.fromEntries(["bands", "columns", "lines", "ties", "boxes"].map((name) => [name, svg("g")]));
    this.layers.boxes.setAttribute("role", "group");
    this.layers.boxes.setAttribute("aria-label", "containers; arrow keys move, Enter selects");
    this.root = svg("svg", { class: "graph" }, ...Object.values(this.layers));
    place.append(this.root);
    this.boxes = [];
    this.current = "";
    this.marks = { ends: [], problems: new Map(), filter: "" };
    this.root.addEventListener("click", (event) => this.pick(event.target));
    this.root.addEventListener("keydown", (event) => this.key(event));
    place.addEventListener("focusin", (event) => this.focused(event.target)); // of `root`, it would take the focus itself
    for (const kind of ["pointerover", "pointerout"]) {
      this.root.addEventListener(kind, (event) => this.hover(kind === "pointerover" ? this.at(event.target) : null));
    }
    new ResizeObserver(() => this.resized()).observe(place);
  }

  resized() {
    if (this.graph && this.width !== this.place.clientWidth) this.draw(this.graph, this.marks);
  }

  /** Draw a graph. `marks`: {ends: keys of boxes, problems: Map of ids → words, filter: text}. */
  draw(graph, marks) {
    this.graph = graph;
    this.marks = marks;
    this.width = this.place.clientWidth;
    const found = layout(graph, this.width);
    this.boxes = found.boxes;
    this.size = found.size;
    this.narrow = found.narrow;
    this.byId = new Map(found.boxes.map((box) => [box.key, box]));
    set(this.root, { width: found.width, height: found.height, viewBox: `0 0 ${found.width} ${found.height}` });
    this.ids = new Map();
    for (const box of found.boxes) {
      const ids = this.ids.get(box.container.key);
      if (ids) ids.push(box);
      else this.ids.set(box.container.key, [box]);
    }
    this.drawBands(found);
    this.drawColumns(found);
    this.drawLines(found);
    this.drawTies();
    if (!this.byId.has(this.current)) this.current = found.boxes[0]?.key ?? "";
    list(this.layers.boxes, found.boxes, (box) => box.key, makeBox, (node, box) => this.changeBox(node, box));
  }

  drawBands(found) {
    const problems = this.marks.problems;
    const make = () => svg("g", {}, svg("rect", { class: "band", rx: 3 }), svg("text", { class: "name" }), svg("text", { class: "small" }), svg("g"));
    list(this.layers.bands, found.bands, (band) => band.network.id, make, (node, band) => {
      const [rect, name, kind, subnets] = node.children;
      const { network } = band;
      set(rect, { x: band.x, y: band.y, width: band.width, height: band.height });
      const bad = problems.has(network.id);
      set(name, { x: band.label.x, y: band.label.y, class: bad ? "name bad" : "name" });
      say(name, cut(network.name, found.labelWidth, 7.3));
      set(kind, { x: band.label.x, y: band.label.y + 15 });
      const many = found.boxes.reduce((sum, box) => sum + (box.network === network), 0);
      const words = [network.mode, ...(network.internal ? ["internal"] : []), `${many} endpoint${many === 1 ? "" : "s"}`];
      say(kind, words.join(" · "));
      list(subnets, network.subnets, (one) => one.subnet, () => svg("text", { class: "mono" }), (text, one) => {
        set(text, { x: band.label.x, y: band.label.y + 30 + 14 * network.subnets.indexOf(one) });
        say(text, cut(one.subnet, found.labelWidth, 6.7));
      });
    });
  }

  drawColumns(found) {
    const make = () => svg("g", {}, svg("rect", { class: "column", rx: 4 }), svg("text", { class: "name" }), svg("text", { class: "small" }));
    const id = (column) => (column.caption ? `${column.host.name}/${column.y}` : column.host.name);
    list(this.layers.columns, found.columns, id, make, (node, column) => {
      const [rect, name, state] = node.children;
      const { host } = column;
      const bad = !host.alive || host.notes.length > 0;
      const words = [host.alive ? "" : "not alive", host.address, host.me ? "this host" : "", host.notes[0] ?? ""];
      const text = words.filter(Boolean).join(" · ");
      if (column.caption) {
        set(rect, { visibility: "hidden", class: "column" });
        set(name, { x: column.x, y: column.y + 12, class: bad ? "small bad" : "small" });
        say(name, `${host.name} ${text}`);
        set(state, { visibility: "hidden" });
        return;
      }
      set(rect, { x: column.x + 0.5, y: 0.5, width: column.width - 1, height: column.height - 1, class: bad ? "column bad" : "column" });
      set(name, { x: column.x + 10, y: 19 });
      say(name, cut(host.name, column.width - 20, 7.3));
      set(state, { x: column.x + 10, y: 35, class: bad ? "small bad" : "small" });
      say(state, cut(text, column.width - 20, 6.2));
    });
  }

  drawLines(found) {
    const lines = found.bands.flatMap((band) => band.lines.map((line, place) => ({ id: `${band.network.id} ${place}`, band, line })));
    list(this.layers.lines, lines, (one) => one.id, () => svg("path"), (node, { band, line }) => {
      const stems = found.boxes.filter((box) => box.network === band.network && box.row === 0 && box.lineY === line.y);
      const bad = this.marks.problems.has(band.network.id);
      const d = `M${line.x1} ${line.y}H${line.x2}${stems.map((box) => `M${box.x + box.width / 2} ${line.y}V${box.y}`).join("")}`;
      set(node, { d, class: bad ? "line bad" : "line" });
    });
  }

  /** Join the boxes of a container that is in several networks: of all if these are few, else of the one looked at. */
  drawTies() {
    const several = [...this.ids.values()].filter((boxes) => boxes.length > 1);
    const looked = this.hovered ?? (this.root.contains(document.activeElement) ? this.byId.get(this.current) : undefined);
    const here = looked?.container.key;
    const few = !this.narrow && several.length <= FEW_TIES;
    const shown = few ? several : several.filter((boxes) => boxes[0].container.key === here);
    const ties = shown.flatMap((boxes) => boxes.slice(1).map((box, place) => [boxes[place], box]));
    list(this.layers.ties, ties, ([from, to]) => from.key + to.key, () => svg("path"), (node, [from, to]) => {
      const [x, y, u] = [from.x + 9, from.y + this.size.height, to.x + 9];
      const kind = from.container.key === here ? "tie near" : "tie";
      set(node, { class: kind, d: `M${x} ${y}C${x} ${y + 26} ${u} ${to.y - 26} ${u} ${to.y}` });
    });
  }

  changeBox(node, box) {
    const [title, rect, name, address, badge] = node.children;
    const { endpoint, container, network } = box;
    const { ends, problems, filter } = this.marks;
    const end = ends.indexOf(box.key);
    const bad = problems.get(endpoint.id) ?? (endpoint.healthy ? "" : "unhealthy");
    const faint = filter !== "" && !matches(searched(box), filter);
    const many = this.ids.get(container.key).length;
    const looked = `${end} ${bad} ${faint} ${box.key === this.current} ${box.x} ${box.y} ${box.width} ${many} ${this.same === container.key} ${this.size.compact}`;
    const told = `${container.name} ${endpoint.addresses} ${endpoint.ports} ${network.name}`;
    if (node.looked === looked && node.told === told) return;
    Object.assign(node, { looked, told });
    const kind = ["box", end >= 0 && "chosen", bad && "bad", faint && "faint", this.same === container.key && "same"];
    const words = [container.name, `network ${network.name}`, `host ${container.host}`, ...endpoint.addresses, ...endpoint.ports, bad];
    set(node, {
      class: kind.filter(Boolean).join(" "),
      transform: `translate(${box.x} ${box.y})`,
      tabindex: box.key === this.current ? 0 : -1,
      "aria-pressed": end >= 0,
      "aria-label": words.filter(Boolean).join(", "),
      "data-id": box.key,
    });
    say(title, words.filter(Boolean).join("\n"));
    set(rect, { width: box.width, height: this.size.height });
    const marks = [["①", "②"][end], bad ? "!" : "", many > 1 ? `×${many}` : ""].filter(Boolean).join(" ");
    say(name, cut(container.name, box.width - 18 - 9 * marks.length, 7.1));
    const line = [endpoint.addresses[0] ?? "no address", ...hostPorts(endpoint)].join(" ");
    say(address, this.size.compact ? "" : cut(line, box.width - 16, 6.7));
    set(badge, { x: box.width - 7 });
    say(badge, marks);
  }

  at(target) {
    const node = target.closest?.(".box");
    return node ? this.byId.get(node.dataset.id) : null;
  }

  pick(target) {
    const box = this.at(target);
    if (box) this.chosen(box);
  }

  hover(box) {
    this.hovered = box;
    this.look(box?.container.key ?? "");
  }

  /** Show where a container is besides. */
  look(container) {
    const boxes = [...(this.ids?.get(this.same) ?? []), ...(this.ids?.get(container) ?? [])];
    this.same = (this.ids?.get(container)?.length ?? 0) > 1 ? container : "";
    for (const box of boxes) this.changeBox(this.node(box), box);
    if (this.ids) this.drawTies();
  }

  node(box) {
    return this.layers.boxes.known.get(box.key);
  }

  focused(target) {
    const box = this.at(target);
    if (!box) return;
    const former = this.byId.get(this.current);
    this.current = box.key;
    for (const one of [former, box]) if (one) this.changeBox(this.node(one), one);
    this.look(box.container.key);
  }

  key(event) {
    const box = this.at(event.target);
    if (!box || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") this.chosen(box);
    else if (event.key === "Escape") this.cleared();
    else {
      const to = this.beside(box, event.key);
      if (!to) return;
      this.node(to).focus();
    }
    event.preventDefault();
  }

  /** Return the box to which a key leads. */
  beside(box, pressed) {
    const place = this.boxes.indexOf(box);
    if (pressed === "ArrowRight") return this.boxes[place + 1];
    if (pressed === "ArrowLeft") return this.boxes[place - 1];
    if (pressed === "Home") return this.boxes[0];
    if (pressed === "End") return this.boxes.at(-1);
    const way = { ArrowDown: 1, ArrowUp: -1 }[pressed];
    if (!way) return undefined;
    let best;
    for (const one of this.boxes) {
      const down = (one.y - box.y) * way;
      const far = down * 10 + Math.abs(one.x - box.x);
      if (down > 0 && (!best || far < best.far)) best = { one, far };
    }
    return best?.one;
  }
}

function makeBox() {
  const texts = [svg("text", { class: "name", x: 8, y: 15 }), svg("text", { class: "mono", x: 8, y: 29 }), svg("text", { class: "badge", y: 15 })];
  return svg("g", { role: "button" }, svg("title"), svg("rect", { rx: 3 }), ...texts);
}

/** Return the texts by which a box is found. */
function searched({ container, endpoint, network }) {
  return [container.name, container.id, container.host, network.name, network.mode, ...endpoint.addresses, ...endpoint.ports];
}

/** Return the published ports of the host, as in :8080, each once. */
function hostPorts({ ports }) {
  return [...new Set(ports.flatMap((port) => port.match(/:[\d-]+(?=->)/) ?? []))];
}

/** Cut a text to a width, by the mean width of a character. */
function cut(text, width, mean) {
  const most = Math.max(Math.floor(width / mean), 2);
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
