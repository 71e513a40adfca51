// Times, steps, and the way to the datasource.

const SECONDS = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86400, w: 604800, M: 2592000, y: 31536000 };
const STEPS = [1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 604800];

/** Seconds of a duration such as 30s or 1h. */
export function seconds(text) {
  const [, number, unit] = /^>?(\d+(?:\.\d+)?)(ms|[smhdwMy])$/.exec(String(text).trim()) ?? [];
  if (!unit) throw new Error(`${text} is no duration such as 30s or 1h`);
  return Number(number) * SECONDS[unit];
}

/** A duration of Prometheus for a number of seconds. */
export const duration = (number) => (Number.isInteger(number) ? `${number}s` : `${Math.round(number * 1000)}ms`);

/** The moment (ms) of now, now-1h, epoch milliseconds or an ISO date. */
export function instant(text, now) {
  const value = String(text).trim();
  if (/^\d{10,}$/.test(value)) return Number(value);
  const [, sign, amount] = /^now(?:([-+])(\d+(?:ms|[smhdwMy])))?$/.exec(value) ?? [];
  if (value.startsWith('now') && (amount || value === 'now')) return now + (amount ? (sign === '-' ? -1 : 1) * seconds(amount) * 1000 : 0);
  const parsed = Date.parse(value);
  if (Number.isNaN(parsed)) throw new Error(`${value} is no time such as now-1h`);
  return parsed;
}

/** The step (s) for a panel: at most `points` of them, no shorter than `least`. */
export function stepFor(rangeSeconds, points, least) {
  const wanted = Math.max(rangeSeconds / Math.max(points, 10), least);
  return STEPS.find((step) => step >= wanted * 0.999) ?? Math.ceil(wanted / 604800) * 604800;
}

/** Grafana's variables of a query: $__interval, $__rate_interval, $__range and their like. */
export function builtins(range, step, scrape) {
  const length = Math.round((range.to - range.from) / 1000);
  return {
    __interval: duration(step), __interval_ms: String(step * 1000), __rate_interval: duration(Math.max(step + scrape, 4 * scrape)),
    __range: `${length}s`, __range_s: String(length), __range_ms: String(length * 1000), __from: String(range.from), __to: String(range.to),
  };
}

async function send(uid, path, parameters, { method = 'POST', signal } = {}) {
  const body = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) for (const one of [value].flat()) if (one !== undefined) body.append(name, one);
  const url = `/api/datasources/proxy/uid/${encodeURIComponent(uid)}/${path}`;
  const answer = await fetch(method === 'GET' ? `${url}?${body}` : url, { method, signal, ...(method === 'POST' && { body }) });
  if (answer.status === 401) {
    window.location.assign(`/login?redirect=${encodeURIComponent(window.location.pathname + window.location.search)}`);
    throw new Error('signed out');
  }
  return answer;
}

/** Ask a datasource of the viewer's server; returns Prometheus' data, or VictoriaLogs' of the same form, throws with its own message. */
export async function ask(uid, path, parameters, options) {
  const answer = await send(uid, path, parameters, options);
  const json = await answer.json().catch(() => ({}));
  if (json.status !== 'success') throw new Error(json.error ?? json.message ?? `status ${answer.status}`);
  return json.data;
}

/** The lines that VictoriaLogs answers a query with, each an object of texts; throws with its own message. */
export async function askLines(uid, parameters, options) {
  const answer = await send(uid, 'select/logsql/query', parameters, options);
  const text = await answer.text();
  if (answer.ok) return text.split('\n').filter(Boolean).map((line) => JSON.parse(line));
  // Its own refusals are plain text, the viewer's are JSON.
  throw new Error(text.startsWith('{') ? JSON.parse(text).error : text || `status ${answer.status}`);
}
