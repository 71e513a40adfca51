import http from 'node:http';
import https from 'node:https';
import { traceCall, traceHeaders, traceStatus } from './tracing.js';

const INDEX = 'products';
const DEFINITION = {
  settings: { number_of_shards: 1, auto_expand_replicas: '0-1', refresh_interval: '200ms' },
  mappings: {
    properties: {
      name: { type: 'text' }, description: { type: 'text' }, price: { type: 'double' }, createdAt: { type: 'date' },
    },
  },
};

/** The few calls of Elasticsearch's REST API that are needed here, by plain HTTP. */
export function createSearch(settings) {
  const base = new URL(settings.ELASTICSEARCH_URL);
  const library = base.protocol === 'https:' ? https : http;
  const agent = new library.Agent({ keepAlive: true, maxSockets: 20, timeout: 30000 });
  const authorization = `Basic ${Buffer.from(`${settings.ELASTICSEARCH_USERNAME}:${settings.ELASTICSEARCH_PASSWORD}`).toString('base64')}`;

  function once(method, path, body, { timeout = 3000, type = 'application/json' } = {}) {
    return new Promise((resolve, reject) => {
      const headers = { Authorization: authorization, Accept: 'application/json', ...traceHeaders() };
      if (body !== undefined) Object.assign(headers, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(body) });
      const req = library.request(new URL(base.pathname.replace(/\/$/, '') + path, base), { method, agent, headers }, (res) => {
        const chunks = [];
        res.on('data', (chunk) => chunks.push(chunk));
        res.on('error', reject);
        res.on('end', () => {
          let json = {};
          try {
            json = JSON.parse(Buffer.concat(chunks).toString('utf8') || '{}');
          } catch { /* a proxy's page, or no body: the status tells enough */ }
          resolve({ status: res.statusCode, json });
        });
      });
      const timer = setTimeout(() => req.destroy(new Error(`no answer within ${timeout} ms`)), timeout);
      req.on('close', () => clearTimeout(timer));
      req.on('error', (error) => reject(Object.assign(error, { stale: req.reusedSocket && error.code === 'ECONNRESET' })));
      req.end(body);
    });
  }

  const store = { 'db.system.name': 'elasticsearch', 'db.collection.name': INDEX, 'server.address': base.hostname, 'server.port': Number(base.port) || (base.protocol === 'https:' ? 443 : 80) };
  /** Every call may be repeated, so one that met a connection which the server had just closed is. */
  function call(operation, method, path, body, options) {
    const sent = body === undefined || typeof body === 'string' ? body : JSON.stringify(body);
    return traceCall(() => [operation, { ...store, 'db.operation.name': operation, 'http.request.method': method }], async (span) => {
      const answer = await once(method, path, sent, options).catch((error) => {
        if (!error.stale) throw error;
        return once(method, path, sent, options);
      });
      traceStatus(span, answer.status);
      return answer;
    });
  }

  function failure(what, { status, json }) {
    const reason = json.error?.reason ?? json.error?.type ?? (typeof json.error === 'string' ? json.error : '');
    return Object.assign(new Error(`${what}: Elasticsearch answered ${status}${reason ? ` ${reason}` : ''}`), { status });
  }

  let known = false;

  /** Make the index if it is not there; returns its UUID, which changes when the index was lost and made anew. */
  async function ensureIndex() {
    const read = () => call('indices.get_settings', 'GET', `/${INDEX}/_settings/index.uuid`);
    let answer = await read();
    if (answer.status === 404) {
      const made = await call('indices.create', 'PUT', `/${INDEX}`, DEFINITION, { timeout: 10000 });
      if (made.status !== 200 && made.json.error?.type !== 'resource_already_exists_exception') throw failure('creating index products', made);
      answer = await read();
    }
    if (answer.status !== 200) throw failure('reading index products', answer);
    known = true;
    return Object.values(answer.json)[0].settings.index.uuid;
  }

  /**
   * Bring the index to the state of these rows of the products table; returns the ids that are done.
   * The row's version goes with each document, so that a late write never undoes a newer one.
   */
  async function apply(rows, { wait = false } = {}) {
    if (!rows.length) return [];
    // Written to before it exists, the index would come into being with Elasticsearch's defaults.
    if (!known) await ensureIndex();
    const lines = rows.flatMap((row) => {
      const target = { _index: INDEX, _id: row.id, version: row.version, version_type: 'external' };
      return row.deleted_at
        ? [{ delete: target }]
        : [{ index: target }, { name: row.name, description: row.description, price: row.price, createdAt: row.created_at }];
    });
    const answer = await call('bulk', 'POST', `/_bulk${wait ? '?refresh=wait_for' : ''}`, `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`, { type: 'application/x-ndjson' });
    if (answer.status !== 200) throw failure('writing products', answer);
    const results = answer.json.items.map((item) => item.index ?? item.delete);
    // 404: nothing to delete; 409: the index holds this version or a newer one already.
    const done = results.filter(({ status }) => status < 300 || status === 404 || status === 409).map(({ _id }) => _id);
    if (!done.length) throw failure('writing products', { status: results[0].status, json: results[0] });
    return done;
  }

  /** Ids of the products that match, best first. */
  async function find(text, limit) {
    const answer = await call('search', 'POST', `/${INDEX}/_search`, {
      size: limit, _source: false, query: { multi_match: { query: text, type: 'bool_prefix', operator: 'and', fields: ['name^2', 'description'] } },
    });
    if (answer.status === 404) return [];
    if (answer.status !== 200) throw failure('searching products', answer);
    return answer.json.hits.hits.map((hit) => hit._id);
  }

  async function check() {
    const answer = await call('cluster.health', 'GET', '/_cluster/health', undefined, { timeout: settings.READINESS_TIMEOUT_MS });
    if (answer.status !== 200) throw failure('cluster health', answer);
    if (answer.json.status === 'red') throw new Error('cluster health is red');
  }

  return { ensureIndex, apply, find, check, close: () => agent.destroy() };
}
