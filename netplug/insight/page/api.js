// What the daemon is asked: GET only.

/** `busy`: others ask at the same time; it will answer later. */
export class Refused extends Error {
  constructor(message, busy = false) {
    super(message);
    this.busy = busy;
  }
}

/** Return an object of the API. */
export async function get(path, patience = 20000) {
  let response;
  try {
    response = await fetch(`/v1/${path}`, { signal: AbortSignal.timeout(patience) });
  } catch (error) {
    throw new Refused(error.name === "TimeoutError" ? "the daemon did not answer in time" : "the daemon does not answer");
  }
  const type = response.headers.get("content-type") ?? "";
  const body = type.startsWith("application/json") ? await response.json() : await response.text();
  if (response.ok) return body;
  const said = body?.error ?? { message: String(body).trim(), hint: "" };
  throw new Refused(said.hint ? `${said.message} (${said.hint})` : said.message, response.status === 503);
}

/**
 * Call `work` every `period` ms while the page is visible, never twice at a time; return what calls it at once.
 * `rest`: it rests so many times longer than it took, if that is more.
 */
export function every(period, work, rest = 0) {
  let running = false;
  let again = false;
  let timer = 0;
  async function run() {
    clearTimeout(timer);
    if (running) {
      again = true;
      return;
    }
    running = true;
    const began = performance.now();
    try {
      await work();
    } finally {
      running = false;
      const soon = again;
      again = false;
      timer = setTimeout(tick, soon ? 0 : Math.max(period, rest * (performance.now() - began)));
    }
  }
  const tick = () => (document.hidden ? (timer = setTimeout(tick, period)) : run());
  document.addEventListener("visibilitychange", () => document.hidden || run());
  run();
  return run;
}

/**
 * Follow the events. The browser connects again by itself; where the stream was refused, this does.
 * `heard`: gets each event; `connected`: gets whether they come.
 */
export function follow(heard, connected) {
  const source = new EventSource("/v1/events/stream");
  source.onopen = () => connected(true);
  source.onmessage = (message) => heard(JSON.parse(message.data));
  source.onerror = () => {
    connected(false);
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 5000, heard, connected);
  };
}
