// The page: asks for what there is, shows it, and asks again when something happens.

import { every, follow, get } from "./api.js";
import { byId, say, set } from "./dom.js";
import { keepEvent, marked, showDns, showEvents, showNames, showPools, showProblems } from "./panels.js";
import { Topology } from "./topology.js";
import { Trace } from "./trace.js";

const EMPTY = { hosts: [], networks: [], containers: [], endpoints: [], note: "" };
const SOON_MS = 250;
const ABOUT_FAULTS = /^(drift|fault|quarantine)\./;

const state = { graph: EMPTY, text: "", differences: [], names: [], filter: "", live: false };
const trace = new Trace(draw);
const topology = new Topology(byId("topology"), (box) => trace.choose(box), () => trace.set([]));

function draw() {
  performance.mark("draw");
  const marks = { ends: trace.keys, problems: marked(state.differences, state.graph), filter: state.filter };
  topology.draw(state.graph, marks);
  performance.measure("drawn", "draw");
}

async function look() {
  try {
    const graph = await get("graph");
    const text = JSON.stringify(graph);
    if (text !== state.text) {
      Object.assign(state, { graph, text });
      show();
    }
    answered(true);
  } catch (error) {
    if (!error.busy) answered(false, error.message);
  }
}

function show() {
  const { graph } = state;
  say(byId("host"), graph.hosts.find((host) => host.me)?.name ?? "");
  document.title = `${byId("host").textContent} · netplug`;
  const counts = [["host", graph.hosts], ["network", graph.networks], ["container", graph.containers]];
  say(byId("summary"), counts.map(([word, all]) => `${all.length} ${word}${all.length === 1 ? "" : "s"}`).join(" · "));
  byId("note").hidden = !graph.note;
  say(byId("note"), graph.note);
  draw();
  showPools(graph);
}

async function compare() {
  state.differences = (await get("diff")).differences;
  showProblems(state.differences);
  draw();
}

async function questions() {
  showDns(await get("dns/stats"), performance.now() / 1000);
}

async function name() {
  state.names = (await get("dns")).names;
  showNames(state.names, state.filter);
}

function answered(well, why = "") {
  state.answers = well;
  set(byId("live"), { class: well ? (state.live ? "live on" : "live") : "live off", title: why || "events arrive as they happen" });
  say(byId("live"), well ? (state.live ? "live" : "connecting") : "no answer");
}

/** Do what may fail: the next look tries again, and the light says that the daemon does not answer. */
const trying = (work) => async () => {
  try {
    await work();
  } catch (error) {
    if (!error.busy) answered(false, error.message);
  }
};

const lookAgain = every(15000, look);
every(3000, () => (state.live ? undefined : look()));
const compareAgain = every(10000, trying(compare), 40);
const nameAgain = every(15000, trying(name));
every(2000, trying(questions));

let soon = 0;
function heard(event) {
  keepEvent(event, true);
  if (ABOUT_FAULTS.test(event.kind)) compareAgain();
  soon ||= setTimeout(() => {
    soon = 0;
    showEvents();
    lookAgain();
    nameAgain();
  }, SOON_MS);
}

async function past() {
  for (const event of (await get("events?limit=100")).events) keepEvent(event, false);
  showEvents();
}

follow(heard, (live) => {
  state.live = live;
  answered(state.answers ?? true);
  if (live) trying(past)();
});

byId("filter").addEventListener("input", (event) => {
  state.filter = event.target.value.trim().toLowerCase();
  draw();
  showNames(state.names, state.filter);
});
byId("names-details").addEventListener("toggle", () => showNames(state.names, state.filter));
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) {
    event.preventDefault();
    byId("filter").focus();
  }
});
