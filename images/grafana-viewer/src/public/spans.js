// Spans of a trace as Jaeger has them: their order, their place in time, what is said of them.

const tagsOf = ({ tags = [] }) => Object.fromEntries(tags.map(({ key, value }) => [key, value]));

/** The rows of a trace, children behind their parent, by time: [{ depth, id, service, name, at, ms, error, tags }], `at` and `ms` in milliseconds. */
export function rowsOf({ spans = [], processes = {} }) {
  const begin = Math.min(...spans.map(({ startTime }) => startTime));
  const known = new Set(spans.map(({ spanID }) => spanID));
  const children = new Map();
  for (const span of [...spans].sort((a, b) => a.startTime - b.startTime)) {
    const parent = (span.references ?? []).find(({ refType, spanID }) => refType === 'CHILD_OF' && known.has(spanID))?.spanID ?? '';
    children.set(parent, [...(children.get(parent) ?? []), span]);
  }
  const rows = [];
  function add(parent, depth) {
    const own = children.get(parent) ?? [];
    children.delete(parent);
    for (const span of own) {
      const tags = tagsOf(span);
      const failed = [true, 'true'].includes(tags.error);
      rows.push({
        depth, id: span.spanID, service: processes[span.processID]?.serviceName ?? '', name: span.operationName, at: (span.startTime - begin) / 1000, ms: span.duration / 1000, tags,
        error: failed ? String(tags['otel.status_description'] ?? tags['http.response.status_code'] ?? 'error') : '',
      });
      add(span.spanID, depth + 1);
    }
  }
  add('', 0);
  // Those that are each other's parents.
  for (const parent of [...children.keys()]) add(parent, 0);
  return rows;
}
