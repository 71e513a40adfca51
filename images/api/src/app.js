import { randomUUID } from 'node:crypto';
import prom from 'prom-client';
import { createAuth } from './auth.js';
import { createCache } from './cache.js';
import { createDatabase, isUnavailable } from './database.js';
import { createLimits } from './limits.js';
import { createProducts, validId, validNumber } from './products.js';
import { createSearch } from './search.js';
import { HttpError, createService, describe, readJson } from './service.js';

/** The API's service with its stores: { service, release, products }. */
export function createApp(settings, log) {
  const registry = new prom.Registry();
  const database = createDatabase(settings, log);
  const cache = createCache(settings, log);
  const search = createSearch(settings);
  const products = createProducts({ database, cache, search, settings, log, registry });
  const auth = createAuth({ database, settings });
  const limit = createLimits({ cache, settings, log, registry });
  const up = new prom.Gauge({ name: 'dependency_up', help: 'Whether the last readiness check of a store passed', labelNames: ['dependency'], registers: [registry] });
  const stores = { postgres: database, redis: cache, elasticsearch: search };

  async function ready({ send }) {
    if (service.draining) {
      send(503, { status: 'draining', failed: [] });
      return;
    }
    const checks = Object.fromEntries(await Promise.all(Object.entries(stores).map(async ([name, store]) => {
      const started = Date.now();
      const error = await store.check().then(() => undefined, describe);
      up.set({ dependency: name }, error ? 0 : 1);
      return [name, { status: error ? 'down' : 'up', ms: Date.now() - started, ...(error && { error }) }];
    })));
    const failed = Object.keys(checks).filter((name) => checks[name].status === 'down');
    send(failed.length ? 503 : 200, { status: failed.length ? 'not ready' : 'ready', failed, checks });
  }

  async function pay({ req, send, user }) {
    const { productId, amount } = await readJson(req);
    if (typeof amount !== 'number' || !(amount > 0 && amount < 1e8)) throw new HttpError(400, 'amount must be a number above 0');
    const id = randomUUID();
    const { rowCount } = await database.query(
      `INSERT INTO payments (id, product_id, user_id, amount) SELECT $1, id, $3, $4 FROM products WHERE id = $2 AND deleted_at IS NULL
       ON CONFLICT (id) DO UPDATE SET id = excluded.id`,
      [id, validId(String(productId)), user ?? null, amount],
    );
    if (!rowCount) throw new HttpError(404, 'product not found');
    send(201, { id, productId, amount, status: 'accepted' });
  }

  const fields = ({ requestId }) => ({ requestId });
  const service = createService({
    settings, log, registry,
    routes: [
      { method: 'GET', path: '/health/live', quiet: true, handler: ({ send }) => send(200, { status: 'live' }) },
      { method: 'GET', path: '/health/ready', quiet: true, handler: ready },
      {
        method: 'GET', path: '/api/products',
        handler: async ({ url, send }) => {
          const limitTo = validNumber(url, 'limit', { fallback: 20, min: 1, max: 100 });
          const offset = validNumber(url, 'offset', { fallback: 0, min: 0, max: 1e6 });
          send(200, { items: await products.list(limitTo, offset), limit: limitTo, offset });
        },
      },
      {
        method: 'POST', path: '/api/products',
        handler: async (context) => {
          const product = await products.create(await readJson(context.req), fields(context));
          context.send(201, product, { Location: `/api/products/${product.id}` });
        },
      },
      {
        method: 'GET', path: '/api/products/:id',
        handler: async ({ params, send }) => {
          const { product, from } = await products.read(validId(params.id));
          send(200, product, { 'X-Cache': from });
        },
      },
      {
        method: 'DELETE', path: '/api/products/:id',
        handler: async (context) => {
          await products.remove(validId(context.params.id), fields(context));
          context.res.writeHead(204).end();
        },
      },
      {
        method: 'GET', path: '/api/search',
        handler: async ({ url, send }) => {
          const query = (url.searchParams.get('q') ?? '').trim();
          if (!query || query.length > 200) throw new HttpError(400, 'q must be a text of 1 to 200 characters');
          const limitTo = validNumber(url, 'limit', { fallback: 20, min: 1, max: 100 });
          const items = await products.find(query, limitTo);
          send(200, { query, items });
        },
      },
      { method: 'POST', path: '/api/auth/register', handler: async ({ req, send }) => send(201, await auth.register(await readJson(req))) },
      { method: 'POST', path: '/api/auth/login', handler: async ({ req, send }) => send(200, await auth.login(await readJson(req))) },
      { method: 'POST', path: '/api/payments', handler: pay },
    ],
    before: async (context) => {
      context.user = auth.user(context.req);
      await limit(context);
    },
    onError: (error) => (isUnavailable(error) ? new HttpError(503, 'a store is unavailable', { headers: { 'Retry-After': 1 } }) : undefined),
  });

  cache.connect();
  products.start();
  return {
    service,
    products,
    release: async () => {
      await products.stop();
      await database.close();
      cache.close();
      search.close();
    },
  };
}
