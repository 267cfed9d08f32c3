// Makes and changes elements. Names of containers are anybody's input: they get into the page as text nodes and
// attribute values alone, and the Content-Security-Policy refuses whatever would parse them as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element with attributes and children; texts become text nodes. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Return an element of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  set(node, attributes);
  node.append(...children);
  return node;
}

/** Set attributes that differ; null and false remove one. */
export function set(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) {
      if (node.hasAttribute(key)) node.removeAttribute(key);
    } else if (node.getAttribute(key) !== String(value)) node.setAttribute(key, value === true ? "" : value);
  }
}

/** Set a text, if it differs. */
export function say(node, text) {
  const words = String(text);
  if (node.textContent !== words) node.textContent = words;
}

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * Make the children of a node those of a list, and change only what differs.
 * `key`: of an item; `make`: returns its node; `change`: is called with node and item each time.
 */
export function list(parent, items, key, make, change) {
  const known = (parent.known ??= new Map());
  const left = new Set(known.keys());
  let place = parent.firstChild;
  for (const item of items) {
    const id = key(item);
    let node = known.get(id);
    if (!node) known.set(id, (node = make(item)));
    left.delete(id);
    change(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const id of left) {
    known.get(id).remove();
    known.delete(id);
  }
}
