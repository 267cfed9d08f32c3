// The trace between two containers: chosen by clicks, asked of the daemon, shown hop by hop.

import { get } from "./api.js";
import { byId, el, list, say, set } from "./dom.js";

const KINDS = { ok: "ok", broken: "broken", noted: "noted" };
const PATIENCE_MS = 45000;

export class Trace {
  /** `changed`: is called when other boxes are chosen. */
  constructor(changed) {
    this.changed = changed;
    this.ends = [];
    this.run = 0;
    byId("trace-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    byId("trace-swap").addEventListener("click", () => this.set([...this.ends].reverse()));
    byId("trace-clear").addEventListener("click", () => this.set([]));
  }

  /** Return the keys of the chosen boxes. */
  get keys() {
    return this.ends.map((box) => box.key);
  }

  /** Choose a box: the source, then the destination, then a new source. */
  choose(box) {
    const known = this.keys.indexOf(box.key);
    if (known >= 0) this.set(this.ends.filter((_, place) => place !== known));
    else this.set(this.ends.length < 2 ? [...this.ends, box] : [box]);
  }

  set(ends) {
    this.ends = ends;
    this.run += 1;
    for (const [place, id] of ["trace-from", "trace-to"].entries()) {
      const box = ends[place];
      say(byId(id), box ? `${box.container.name}  ${box.network.name} on ${box.container.host}` : ["click a container", "then another one"][place]);
      set(byId(id), { class: box ? null : "empty" });
    }
    for (const id of ["trace-again", "trace-swap"]) byId(id).disabled = ends.length < 2;
    byId("trace-clear").disabled = ends.length === 0;
    this.verdict("", "");
    this.hops([]);
    this.details();
    this.changed();
    if (ends.length === 2) this.start();
  }

  details() {
    const box = this.ends.at(-1);
    const place = byId("details");
    place.hidden = !box || this.ends.length === 2;
    place.replaceChildren();
    if (place.hidden) return;
    const { container, endpoint, network } = box;
    const facts = {
      container: container.name,
      id: container.id.slice(0, 12),
      host: container.host,
      network: `${network.name} (${network.mode}, mtu ${network.mtu})`,
      addresses: endpoint.addresses.join(" "),
      mac: endpoint.mac,
      published: endpoint.ports.join(", "),
      "made by": container.front_end,
    };
    const rows = Object.entries(facts).filter(([, value]) => value);
    place.append(el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
  }

  async start() {
    if (this.ends.length < 2 || !byId("trace-form").reportValidity()) return;
    const run = (this.run += 1);
    const [from, to] = this.ends;
    this.hops([]);
    if (!from.host.me) {
      this.verdict("bad", `a trace starts on the host of its source: swap, or open the page of ${from.host.name}`);
      return;
    }
    const address = to.endpoint.addresses.find((one) => one.includes(":") === (from.endpoint.addresses[0] ?? "").includes(":")) ?? to.endpoint.addresses[0];
    const port = byId("trace-port").value.trim();
    const target = !address ? to.container.name : port && address.includes(":") ? `[${address}]` : address;
    const query = new URLSearchParams({ src: from.endpoint.id, dst: port ? `${target}:${port}` : target });
    this.verdict("busy", "asking each hop…");
    try {
      const found = await get(`trace?${query}`, PATIENCE_MS);
      if (run === this.run) this.show(found);
    } catch (error) {
      if (run === this.run) this.verdict("bad", error.message);
    }
  }

  show(found) {
    const took = `${(found.took_ms / 1000).toFixed(1)} s`;
    this.verdict(found.reached ? "good" : "bad", `${found.flow}: ${found.reached ? "reached" : brokenAt(found)} (${took})`);
    const notes = found.notes.map((text) => ({ hop: text, where: "", what: "", verdict: "noted", ms: null, cause: null }));
    this.hops([...found.hops, ...notes]);
  }

  verdict(kind, text) {
    const place = byId("trace-verdict");
    place.hidden = !text;
    set(place, { class: `verdict ${kind}` });
    say(place, text);
  }

  hops(hops) {
    const place = byId("trace-hops");
    place.known = undefined;
    place.replaceChildren();
    list(place, hops.entries(), ([number]) => number, ([, hop]) => hopNode(hop), () => {});
  }
}

/** Say at which of the listed hops it is broken, where that is, and why. */
function brokenAt({ hops, broken }) {
  if (!broken) return "not reached";
  const number = hops.findIndex((hop) => hop.verdict === "broken") + 1;
  const place = broken.where ? `, ${broken.where}` : "";
  return `not reached: broken at hop ${number}${place}: ${broken.cause?.words ?? broken.what}`;
}

function hopNode(hop) {
  const where = hop.where ? [el("span", { class: "dim" }, ` ${hop.where}`)] : [];
  const node = el("li", { class: KINDS[hop.verdict] ?? "unseen-hop" }, el("span", {}, hop.hop, ...where));
  node.append(el("span", { class: "dim" }, hop.ms === null ? "" : `${hop.ms.toFixed(1)} ms`));
  if (hop.what) node.append(el("span", { class: "what dim" }, hop.what));
  if (hop.cause) {
    node.append(el("span", { class: "cause" }, hop.cause.words));
    if (hop.cause.mend) node.append(el("code", { class: "mend" }, hop.cause.mend));
  }
  return node;
}
