import { randomUUID } from 'node:crypto';
import prom from 'prom-client';
import { HttpError } from './service.js';

const COLUMNS = 'id, name, description, price::float8 AS price, created_at, deleted_at, version';
const CACHE_SECONDS = 300;
const BATCH = 500;
// Requests index their own product; the background work leaves them this time before it takes the row for forgotten.
const GRACE = '5 seconds';
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

const shown = (row) => ({ id: row.id, name: row.name, description: row.description, price: row.price, createdAt: row.created_at });
const key = (id) => `product:${id}`;

/** The product of a request body, or a 400 that names each wrong field. */
export function validProduct(body) {
  const { name, description = '', price } = body;
  const errors = {};
  if (typeof name !== 'string' || !name.trim() || name.length > 200) errors.name = 'must be a text of 1 to 200 characters';
  if (typeof description !== 'string' || description.length > 5000) errors.description = 'must be a text of at most 5000 characters';
  if (typeof price !== 'number' || !(price >= 0 && price < 1e8) || Math.abs(Math.round(price * 100) - price * 100) > 1e-6 * Math.max(1, price)) {
    errors.price = 'must be a number from 0 to 99999999.99 with at most two decimals';
  }
  for (const [field, value] of Object.entries({ name, description })) {
    if (typeof value === 'string' && value.includes('\0')) errors[field] = 'must not contain a NUL character';
  }
  if (Object.keys(errors).length) throw new HttpError(400, 'product is not valid', { fields: { errors } });
  return { name: name.trim(), description, price };
}

export function validId(id) {
  if (!UUID.test(id)) throw new HttpError(400, 'id must be a UUID');
  return id.toLowerCase();
}

/** A whole number of the query string between its bounds, or a 400. */
export function validNumber(url, name, { fallback, min, max }) {
  const text = url.searchParams.get(name);
  if (text === null) return fallback;
  const value = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
  if (!(value >= min && value <= max)) throw new HttpError(400, `${name} must be a whole number from ${min} to ${max}`);
  return value;
}

/**
 * Products: PostgreSQL is the truth, Redis a cache of single products, Elasticsearch a copy for search.
 * A row whose indexed_at is null is not yet in the index (or, deleted, still there); `catchUp` works through those.
 */
export function createProducts({ database, cache, search, settings, log, registry }) {
  const cached = new prom.Counter({ name: 'product_cache_requests_total', help: 'Products read, by where they came from', labelNames: ['result'], registers: [registry] });
  const pending = new prom.Gauge({ name: 'products_index_pending', help: 'Products whose last change is not in the search index yet', registers: [registry] });

  const markIndexed = (rows) => database.query(
    `UPDATE products p SET indexed_at = now() FROM unnest($1::uuid[], $2::bigint[]) AS done (id, version)
     WHERE p.id = done.id AND p.version = done.version AND p.deleted_at IS NULL`,
    [rows.map((row) => row.id), rows.map((row) => row.version)],
  );

  async function indexNow(row, fields) {
    try {
      await search.apply([row], { wait: true });
      if (!row.deleted_at) await markIndexed([row]);
      return true;
    } catch (error) {
      log.warn('search index not updated, to be repeated in the background', { ...fields, productId: row.id, error });
      return false;
    }
  }

  async function create(body, fields) {
    const { name, description, price } = validProduct(body);
    // The id is made here, so that a repeated insert after a lost connection cannot make a second product.
    const id = randomUUID();
    const { rows: [row] } = await database.query(
      `INSERT INTO products (id, name, description, price) VALUES ($1, $2, $3, $4)
       ON CONFLICT (id) DO UPDATE SET id = excluded.id RETURNING ${COLUMNS}`,
      [id, name, description, price],
    );
    return { ...shown(row), indexed: await indexNow(row, fields) };
  }

  async function list(limit, offset) {
    const { rows } = await database.query(
      `SELECT ${COLUMNS} FROM products WHERE deleted_at IS NULL ORDER BY created_at DESC, id LIMIT $1 OFFSET $2`,
      [limit, offset],
    );
    return rows.map(shown);
  }

  async function read(id) {
    const hit = await cache.command('GET', (redis) => redis.get(key(id))).catch(() => null);
    if (hit) {
      cached.inc({ result: 'hit' });
      return { product: JSON.parse(hit), from: 'hit' };
    }
    cached.inc({ result: 'miss' });
    const { rows: [row] } = await database.query(`SELECT ${COLUMNS} FROM products WHERE id = $1 AND deleted_at IS NULL`, [id]);
    if (!row) throw new HttpError(404, 'product not found');
    const product = shown(row);
    await cache.command('SET', (redis) => redis.set(key(id), JSON.stringify(product), { EX: CACHE_SECONDS })).catch(() => {});
    return { product, from: 'miss' };
  }

  async function remove(id, fields) {
    const { rows: [row] } = await database.query(
      `UPDATE products SET deleted_at = now(), indexed_at = NULL, version = version + 1 WHERE id = $1 AND deleted_at IS NULL RETURNING ${COLUMNS}`,
      [id],
    );
    if (!row) throw new HttpError(404, 'product not found');
    await cache.command('DEL', (redis) => redis.del(key(id))).catch((error) => log.warn('cache not cleared, to be repeated in the background', { ...fields, productId: id, error }));
    await indexNow(row, fields);
  }

  async function find(text, limit) {
    const ids = await search.find(text, limit).catch((error) => {
      log.warn('search failed', { error });
      throw new HttpError(503, 'search is unavailable', { headers: { 'Retry-After': 1 } });
    });
    if (!ids.length) return [];
    const { rows } = await database.query(`SELECT ${COLUMNS} FROM products WHERE id = ANY($1::uuid[]) AND deleted_at IS NULL`, [ids]);
    const byId = new Map(rows.map((row) => [row.id, shown(row)]));
    return ids.filter((id) => byId.has(id)).map((id) => byId.get(id));
  }

  /** Index what is not indexed; a deleted row goes for good only once both the index and the cache have forgotten it. */
  async function catchUp() {
    const uuid = await search.ensureIndex();
    // An index with another UUID is a new, empty one: everything has to go in again.
    const { rowCount: renewed } = await database.query(
      `INSERT INTO search_index (one_row, uuid) VALUES (true, $1) ON CONFLICT (one_row) DO UPDATE SET uuid = excluded.uuid WHERE search_index.uuid <> excluded.uuid`,
      [uuid],
    );
    if (renewed) {
      const { rowCount } = await database.query('UPDATE products SET indexed_at = NULL WHERE indexed_at IS NOT NULL');
      log.info('the search index is new, all products are indexed again', { products: rowCount });
    }
    let total = 0;
    for (;;) {
      const { rows } = await database.query(
        `SELECT ${COLUMNS} FROM products WHERE indexed_at IS NULL AND ($1 OR coalesce(deleted_at, created_at) < now() - $2::interval)
         ORDER BY coalesce(deleted_at, created_at) LIMIT $3`,
        [Boolean(renewed), GRACE, BATCH],
      );
      const done = new Set(await search.apply(rows));
      const finished = rows.filter((row) => done.has(row.id));
      await markIndexed(finished.filter((row) => !row.deleted_at));
      const gone = finished.filter((row) => row.deleted_at).map((row) => row.id);
      if (gone.length) {
        await cache.command('DEL', (redis) => redis.del(gone.map(key)));
        await database.query('DELETE FROM products WHERE id = ANY($1::uuid[]) AND deleted_at IS NOT NULL', [gone]);
      }
      total += finished.length;
      if (rows.length < BATCH || finished.length < rows.length) break;
    }
    if (total) log.info('search index caught up', { products: total });
  }

  let timer;
  let running = Promise.resolve();
  let complained = '';
  async function tick() {
    try {
      await catchUp();
      complained = '';
    } catch (error) {
      // Said once a reason, not every few seconds.
      if (complained !== error.message) log.warn('search index cannot catch up', { error });
      complained = error.message;
    }
    const counted = await database.query('SELECT count(*)::int AS count FROM products WHERE indexed_at IS NULL').catch(() => undefined);
    if (counted) pending.set(counted.rows[0].count);
  }
  function schedule(delay) {
    timer = setTimeout(() => {
      running = tick().then(() => { if (timer) schedule(settings.REINDEX_INTERVAL_MS); });
    }, delay);
  }

  return {
    create, list, read, remove, find, catchUp,
    start: () => schedule(0),
    stop: async () => {
      clearTimeout(timer);
      timer = undefined;
      await running;
    },
  };
}
