// Search against a real Elasticsearch: TEST_ELASTICSEARCH_URL (and _PASSWORD). Its index products is deleted by these tests.
import assert from 'node:assert/strict';
import test, { after, before } from 'node:test';
import { migrationSettings } from '../src/config.js';
import { migrate } from '../src/migrate.js';
import { ask, startApi, startStores, until } from './stores.js';

const skip = process.env.TEST_ELASTICSEARCH_URL ? false : 'needs a server: set TEST_ELASTICSEARCH_URL (api.test.js covers search being away)';
let stores;
let api;

const elastic = (path, method = 'GET', body = undefined) => ask(`${stores.env.ELASTICSEARCH_URL}${path}`, {
  method, body, headers: { Authorization: `Basic ${Buffer.from(`elastic:${stores.env.ELASTICSEARCH_PASSWORD}`).toString('base64')}` },
});
const create = async (name) => (await ask(`${api.url}/api/products`, { method: 'POST', body: { name, price: 1 } })).json;
const found = async (text) => (await ask(`${api.url}/api/search?q=${encodeURIComponent(text)}`)).json.items.map(({ id }) => id);

before(async () => {
  if (skip) return;
  stores = await startStores();
  await migrate(migrationSettings(stores.env), { say: () => {} });
  await elastic('/products', 'DELETE');
  api = await startApi({ ...stores.env, RATE_LIMIT_SEARCH_MAX: '100000' });
});
after(async () => {
  await api?.stop('SIGKILL');
  await stores?.stop();
});

test('all three stores are ready', { skip }, async () => {
  await until('ready', async () => (await ask(`${api.url}/health/ready`)).status === 200);
});

test('two processes that start at once make one index, with the settings meant for it', { skip }, async () => {
  const others = await Promise.all([startApi(stores.env), startApi(stores.env)]);
  const made = await Promise.all(others.map(({ url }) => ask(`${url}/api/products`, { method: 'POST', body: { name: 'First', price: 1 } })));
  assert.deepEqual(made.map(({ json }) => json.indexed), [true, true]);
  await Promise.all(others.map((other) => other.stop('SIGKILL')));
  assert.equal((await elastic('/products/_settings')).json.products.settings.index.auto_expand_replicas, '0-1');
  assert.equal((await elastic('/_cluster/health/products')).json.status, 'green');
});

test('a product is found by search at once, by whole words and beginnings, and not once deleted', { skip }, async () => {
  const { id, indexed } = await create('Walnut writing desk 4711-a');
  assert.equal(indexed, true);
  assert.equal(await stores.sql(`SELECT indexed_at IS NOT NULL FROM products WHERE id = '${id}'`), 't');
  for (const text of ['walnut', 'desk walnut', 'writ', '4711-a']) assert.deepEqual(await found(text), [id], text);
  assert.deepEqual(await found('walnut chair'), []);
  assert.deepEqual(await found('"*?{[('), []);
  assert.equal((await ask(`${api.url}/api/products/${id}`, { method: 'DELETE' })).status, 204);
  assert.deepEqual(await found('walnut'), []);
  assert.equal((await elastic(`/products/_doc/${id}`)).status, 404);
});

test('a late write does not bring a deleted product back', { skip }, async () => {
  const { id } = await create('Ghost');
  await ask(`${api.url}/api/products/${id}`, { method: 'DELETE' });
  assert.equal((await elastic(`/products/_doc/${id}?version=1&version_type=external`, 'PUT', { name: 'Ghost' })).status, 409);
});

test('rows that were never indexed, and deleted ones, are worked off in the background', { skip }, async () => {
  const { id } = await create('Forgotten stool');
  await elastic(`/products/_doc/${id}?version=2&version_type=external`, 'DELETE');
  await stores.sql(`UPDATE products SET indexed_at = NULL, version = 3, created_at = now() - interval '1 minute' WHERE id = '${id}'`);
  await until('found', async () => (await found('forgotten')).includes(id));
  await stores.redis('set', `product:${id}`, '{"stale":true}');
  await stores.sql(`UPDATE products SET deleted_at = now() - interval '1 minute', indexed_at = NULL, version = 4 WHERE id = '${id}'`);
  await until('the row is gone', async () => await stores.sql(`SELECT count(*) FROM products WHERE id = '${id}'`) === '0');
  assert.equal((await elastic(`/products/_doc/${id}`)).status, 404);
  assert.equal(await stores.redis('exists', `product:${id}`), '0');
});

test('an index that was lost is made again with every product', { skip }, async () => {
  const names = Array.from({ length: 5 }, (_, n) => `Survivor ${n}`);
  const ids = [];
  for (const name of names) ids.push((await create(name)).id);
  await stores.sql("INSERT INTO products (id, name, price, indexed_at) SELECT gen_random_uuid(), 'Bulk ' || n, 1, now() FROM generate_series(1, 1200) n");
  assert.equal((await elastic('/products', 'DELETE')).status, 200);
  await until('all of them are found', async () => (await found('survivor')).length === ids.length);
  await until('the bulk is there', async () => (await elastic('/products/_count')).json.count === Number(await stores.sql('SELECT count(*) FROM products WHERE deleted_at IS NULL')));
});
