// What stands beside the topology: pools, DNS questions, events, names, differences.

import { byId, el, list, say, set, svg } from "./dom.js";
import { matches } from "./filter.js";

const SAMPLES = 60;
const MOST_EVENTS = 200;
const MOST_NAMES = 200;
const HIGH = 0.9;
const VERBS = { found: "", begun: "", over: "no longer:" };
const BAD_EVENT = /\.(lost|found|begun|refused|failed)$/;

/** Show how full each subnet is. */
export function showPools(graph) {
  const pools = graph.networks.flatMap((network) => network.subnets.map((subnet) => ({ network, ...subnet })));
  const make = () => el("tr", {}, el("td"), el("td", { class: "mono dim" }), el("td", {}, el("span", { class: "bar" }, el("i"))), el("td"));
  list(byId("pools"), pools, (one) => `${one.network.id} ${one.subnet}`, make, (row, one) => {
    const [name, subnet, bar, used] = row.children;
    const part = Math.min(one.used / one.size, 1);
    say(name, one.network.name);
    say(subnet, one.subnet);
    set(bar.firstChild, { class: part >= HIGH ? "bar full" : "bar" });
    const width = `${(part * 100).toFixed(1)}%`;
    if (bar.firstChild.firstChild.style.width !== width) bar.firstChild.firstChild.style.width = width;
    say(used, one.size < 2 ** 24 ? `${one.used} of ${one.size}` : `${one.used}`);
    set(used, { class: part >= HIGH ? "bad" : null });
  });
}

const courses = new Map();

/** Show the questions of each network. `stats`: the answer of the API; `now`: in seconds. */
export function showDns(stats, now) {
  const rows = stats.networks.map((one) => ({ ...one, ...course(one, now) }));
  for (const known of courses.keys()) if (!stats.networks.some((one) => one.network === known)) courses.delete(known);
  const spark = () => svg("svg", { class: "spark", viewBox: "0 0 66 14", "aria-hidden": "true" }, svg("path"));
  const make = () => el("tr", {}, el("td"), el("td", {}, spark()), el("td"), el("td"), el("td"), el("td"));
  list(byId("dns"), rows, (one) => one.network, make, (row, one) => {
    const [name, graph, rate, answered, unknown, failed] = row.children;
    say(name, one.network);
    set(graph.firstChild.firstChild, { d: line(one.rates) });
    say(rate, one.rates.at(-1) >= 10 ? Math.round(one.rates.at(-1)) : one.rates.at(-1).toFixed(1));
    say(answered, one.counts.answered);
    say(unknown, one.counts.unknown);
    say(failed, one.counts.failed);
    set(failed, { class: one.failing ? "bad" : one.counts.failed ? null : "zero" });
    set(row, { title: one.title });
  });
}

/** Return counts by outcome, the rates of the last looks, and whether questions fail now. */
function course(one, now) {
  const { NOERROR = 0, NXDOMAIN = 0, ...others } = one.answers;
  const rest = Object.values(others).reduce((sum, number) => sum + number, 0);
  const counts = { answered: NOERROR, unknown: NXDOMAIN, failed: rest + one.dropped + one.faults };
  const all = counts.answered + counts.unknown + counts.failed;
  const kept = courses.get(one.network) ?? { rates: [0], all, now, failed: counts.failed, failedAt: -Infinity };
  if (now > kept.now) kept.rates = [...kept.rates, Math.max(all - kept.all, 0) / (now - kept.now)].slice(-SAMPLES);
  if (counts.failed > kept.failed) kept.failedAt = now;
  Object.assign(kept, { all, now, failed: counts.failed });
  courses.set(one.network, kept);
  const codes = Object.entries(one.answers).map(([code, number]) => `${code} ${number}`);
  const more = [`outward ${one.outward}`, `from strangers ${one.strangers}`, `without answer ${one.dropped}`];
  return { counts, rates: kept.rates, failing: now - kept.failedAt < 30, title: [...codes, ...more].join("\n") };
}

function line(rates) {
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, place) => `${(66 - (rates.length - 1 - place) * 1.1).toFixed(1)} ${(13 - (rate / most) * 12).toFixed(1)}`);
  return points.length > 1 ? `M${points.join("L")}` : "";
}

const events = new Map();

/** Keep an event; one that came before has a new count. */
export function keepEvent(event, fresh) {
  events.set(event.id, { ...event, fresh });
  if (events.size > MOST_EVENTS) events.delete(events.keys().next().value);
}

/** Show the events that are kept, the newest first. */
export function showEvents() {
  const make = (event) => {
    const parts = [el("time"), el("span", {}, el("span", { class: "object" }), " ", el("span", { class: "what" })), el("span", { class: "dim" })];
    return el("li", { class: event.fresh ? "fresh" : null }, ...parts);
  };
  const shown = [...events.values()].sort((one, other) => other.time - one.time || other.id - one.id);
  list(byId("events"), shown, (event) => event.id, make, (node, event) => {
    const [time, words, count] = node.children;
    const at = new Date(event.time * 1000);
    if (time.dateTime !== at.toISOString()) {
      time.dateTime = at.toISOString();
      say(time, at.toTimeString().slice(0, 8));
      time.title = at.toLocaleString();
    }
    say(words.firstChild, event.object);
    const kind = event.kind.split(".")[1] ?? event.kind;
    const verb = VERBS[kind] ?? kind;
    const bad = BAD_EVENT.test(event.kind);
    const from = [event.by && event.by !== "netplug" && `by ${event.by}`, bad && event.cause].filter(Boolean).join(": ");
    say(words.lastChild, [verb, event.what, from && `(${from})`].filter(Boolean).join(" "));
    say(count, event.count > 1 ? `×${event.count}` : "");
    node.classList.toggle("bad", bad);
    set(node, { title: event.cause || null });
  });
}

/** Show the names, if they are open. */
export function showNames(names, filter) {
  say(byId("names-count"), names.length);
  if (!byId("names-details").open) return;
  const found = names.filter((one) => matches([one.network, ...one.names, ...one.addresses], filter));
  const make = () => el("tr", {}, el("td"), el("td", { class: "mono dim" }), el("td", { class: "dim" }));
  const shown = found.slice(0, MOST_NAMES);
  list(byId("names"), shown, (one) => `${one.network} ${one.endpoint} ${one.names[0]}`, make, (row, one) => {
    const [name, addresses, network] = row.children;
    say(name, one.names.join(", "));
    say(addresses, one.addresses.join(" "));
    say(network, one.network);
    set(row, { class: one.healthy ? null : "bad" });
  });
  say(byId("names-more"), found.length > shown.length ? `${found.length - shown.length} more: filter to see them` : "");
}

/** Show the differences between records and kernel. */
export function showProblems(differences) {
  byId("problems").hidden = differences.length === 0;
  const many = `${differences.length} difference${differences.length === 1 ? "" : "s"}`;
  say(byId("problems-count"), differences.length ? "between what was asked for and what there is" : "");
  set(byId("state"), { class: differences.length ? "pill bad" : "pill" });
  say(byId("state"), differences.length ? many : "no differences");
  const make = () => el("li", {}, el("span"), el("code"), el("span"));
  list(byId("problems-list"), differences, (one) => `${one.owner} ${one.object} ${one.what}`, make, (node, one) => {
    say(node.children[0], one.owner);
    say(node.children[1], one.object);
    say(node.children[2], one.what);
  });
}

/** Return which networks and endpoints have differences: id → words. */
export function marked(differences, graph) {
  const found = new Map();
  for (const { owner, object, what } of differences) {
    const [kind, ...rest] = owner.split(" ");
    const name = rest.join(" ");
    if (kind === "network") for (const one of graph.networks) if (one.name === name) found.set(one.id, `${object} ${what}`);
    if (kind === "endpoint") {
      for (const one of graph.endpoints) if (one.id.startsWith(rest[0])) found.set(one.id, `${object} ${what}`);
    }
  }
  return found;
}
