// Places the graph: a band for each network, a column for each host, a box for each endpoint. On a narrow screen the
// hosts are below each other within a band. Pure: the same graph and width give the same places.

const ROOMY = { height: 36, gap: 6, least: 118, most: 168, compact: false };
const COMPACT = { height: 21, gap: 4, least: 104, most: 150, compact: true };
const MANY = 150;
const PAD = 10;
const LABEL = 190;
const HEAD = 46;
const TOP = 20;
const LINE = 15;
const NARROW = 700;

/**
 * Return {width, height, columns, bands, boxes, size, narrow}; boxes are smaller where there are many.
 * A column: {host, x, width, y, height}; a band: {network, x, y, width, height, label, lines}; a line: {x1, x2, y};
 * a box: {key, x, y, width, row, lineY, endpoint, container, network, host}; `key` is unique.
 */
export function layout(graph, width) {
  const containers = new Map(graph.containers.map((one) => [one.key, one]));
  const hosts = allHosts(graph);
  const cells = new Map(graph.networks.map((network) => [network.id, new Map()]));
  for (const endpoint of graph.endpoints) {
    const container = containers.get(endpoint.container);
    const cell = cells.get(endpoint.network);
    if (!container || !cell) continue;
    if (!cell.has(container.host)) cell.set(container.host, []);
    cell.get(container.host).push({ endpoint, container });
  }
  const size = graph.endpoints.length > MANY ? COMPACT : ROOMY;
  const found = (width < NARROW ? narrow : wide)(graph, hosts, cells, width, size);
  return { ...found, size, narrow: width < NARROW };
}

/** Return the hosts, and those that only containers name. */
function allHosts(graph) {
  const known = new Set(graph.hosts.map((host) => host.name));
  const others = new Set(graph.containers.map((one) => one.host).filter((name) => !known.has(name)));
  const strange = [...others].sort().map((name) => ({ name, me: false, alive: false, address: "", notes: [] }));
  return [...graph.hosts, ...strange];
}

function wide(graph, hosts, cells, width, size) {
  const across = shares(hosts, cells, width - LABEL - PAD, size);
  const slots = across.reduce((sum, count) => sum + count, 0);
  const free = width - LABEL - PAD - hosts.length * (2 * PAD + PAD) - (slots - hosts.length) * size.gap;
  const box = Math.floor(Math.min(Math.max(free / slots, size.least), size.most));
  let x = LABEL + PAD;
  const columns = hosts.map((host, place) => {
    const column = { host, x, y: 0, width: across[place] * (box + size.gap) - size.gap + 2 * PAD, across: across[place] };
    x += column.width + PAD;
    return column;
  });
  const result = { width: Math.max(x, width), columns, bands: [], boxes: [], labelWidth: LABEL - 2 * PAD };
  let y = HEAD;
  for (const network of graph.networks) {
    let most = 0;
    const cell = cells.get(network.id);
    const lineY = y + 10;
    for (const column of columns) {
      const members = cell.get(column.host.name) ?? [];
      put(result, members, { x: column.x + PAD, y: y + TOP, across: column.across, box, lineY, network, host: column.host, size });
      most = Math.max(most, Math.ceil(members.length / column.across));
    }
    const height = Math.max(TOP + most * (size.height + size.gap) + 4, 14 + LINE * (2 + network.subnets.length));
    const on = columns.filter((column) => network.hosts.includes(column.host.name));
    const line = on.length ? [{ x1: on[0].x + PAD, x2: on.at(-1).x + on.at(-1).width - PAD, y: lineY }] : [];
    result.bands.push({ network, x: 0, y, width: x - PAD, height, label: { x: PAD, y: y + 18 }, lines: line });
    y += height + size.gap;
  }
  for (const column of columns) column.height = y;
  result.height = y;
  return result;
}

/** Return how many boxes are beside each other in each column: as many as a host needs, if there is room. */
function shares(hosts, cells, width, size) {
  const most = hosts.map((host) => Math.max(1, ...[...cells.values()].map((cell) => cell.get(host.name)?.length ?? 0)));
  const room = Math.max(Math.floor((width - hosts.length * 3 * PAD) / (size.least + size.gap)), hosts.length);
  const given = hosts.map(() => 1);
  for (let left = room - hosts.length; left > 0; left -= 1) {
    let best = -1;
    for (const place of given.keys()) {
      const need = Math.ceil(most[place] / given[place]);
      if (given[place] < most[place] && (best < 0 || need > Math.ceil(most[best] / given[best]))) best = place;
    }
    if (best < 0) break;
    given[best] += 1;
  }
  return given;
}

function narrow(graph, hosts, cells, width, size) {
  const across = Math.max(Math.floor((width - PAD) / (size.least + size.gap)), 1);
  const box = Math.min(Math.floor((width - 2 * PAD + size.gap) / across - size.gap), size.most);
  const result = { width, columns: [], bands: [], boxes: [], labelWidth: width - 2 * PAD };
  let y = 0;
  for (const network of graph.networks) {
    const cell = cells.get(network.id);
    const start = y;
    const lines = [];
    y += 14 + LINE * (2 + network.subnets.length);
    for (const host of hosts) {
      const members = cell.get(host.name) ?? [];
      if (!members.length) continue;
      if (hosts.length > 1) {
        result.columns.push({ host, x: PAD, y, caption: true });
        y += 20;
      }
      const rows = Math.ceil(members.length / across);
      put(result, members, { x: PAD, y: y + 10, across, box, lineY: y + 2, network, host, size });
      lines.push({ x1: PAD, x2: PAD + Math.min(members.length, across) * (box + size.gap) - size.gap, y: y + 2 });
      y += 10 + rows * (size.height + size.gap);
    }
    y += 4;
    result.bands.push({ network, x: 0, y: start, width, height: y - start, label: { x: PAD, y: start + 18 }, lines });
    y += size.gap;
  }
  result.height = y;
  return result;
}

function put(result, members, { x, y, across, box, lineY, network, host, size }) {
  members.forEach(({ endpoint, container }, place) => {
    const column = place % across;
    const row = Math.floor(place / across);
    const at = { x: x + column * (box + size.gap), y: y + row * (size.height + size.gap) };
    const key = endpoint.id + network.id;
    result.boxes.push({ key, ...at, width: box, row, lineY, endpoint, container, network, host });
  });
}
