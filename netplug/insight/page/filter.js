// The filter: words in lower case, all of which must be found.

/** Tell whether texts have the words of a filter. */
export function matches(texts, filter) {
  const all = texts.join(" ").toLowerCase();
  return filter.split(/\s+/).every((word) => all.includes(word));
}
