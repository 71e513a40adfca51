// The whole process against real PostgreSQL and Redis. Elasticsearch is away: what is acknowledged must be kept all the same.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import http from 'node:http';
import net from 'node:net';
import test, { after, before } from 'node:test';
import { migrationSettings } from '../src/config.js';
import { migrate } from '../src/migrate.js';
import { ask, freePort, startApi, startStores, until } from './stores.js';

let stores;
let api;
const main = new URL('../src/main.js', import.meta.url).pathname;
const LAMP = { name: 'Desk lamp', description: 'Warm light', price: 19.99 };
const post = (url, body, headers) => ask(url, { method: 'POST', body, headers });

before(async () => {
  stores = await startStores();
  // Absent also where a real one is offered to search.test.js.
  Object.assign(stores.env, { ELASTICSEARCH_URL: `http://127.0.0.1:${await freePort()}` });
  await migrate(migrationSettings(stores.env), { say: () => {} });
  api = await startApi({ ...stores.env, TRUST_PROXY: 'true' });
});
after(async () => {
  await api?.stop('SIGKILL');
  await stores?.stop();
});

let clients = 0;
/** Headers of a client that nobody has counted yet. */
const fresh = () => ({ 'X-Forwarded-For': `198.51.100.${clients += 1}` });

test('missing variables: one line that names them, exit 1', () => {
  const { JWT_SECRET, ...env } = stores.env;
  const ended = spawnSync(process.execPath, [main], { env: { PATH: process.env.PATH, ...env }, encoding: 'utf8' });
  assert.equal(ended.status, 1);
  assert.equal(ended.stderr, 'citadelbuy-api: cannot start: environment variable JWT_SECRET not set\n');
});

test('live is always 200, ready names the store that is away', async () => {
  assert.equal((await ask(`${api.url}/health/live`)).status, 200);
  const ready = await until('Redis is connected', async () => {
    const answer = await ask(`${api.url}/health/ready`);
    return answer.json.checks.redis.status === 'up' && answer;
  });
  assert.equal(ready.status, 503);
  assert.deepEqual(ready.json.failed, ['elasticsearch']);
  assert.equal(ready.json.checks.postgres.status, 'up');
  assert.match(ready.json.checks.elasticsearch.error, /ECONNREFUSED/);
});

test('a product is created without search, read through the cache, listed, and deleted from cache and lists', async () => {
  const created = await post(`${api.url}/api/products`, LAMP, fresh());
  assert.equal(created.status, 201, created.text);
  const { id } = created.json;
  assert.equal(created.json.indexed, false);
  assert.equal(created.headers.get('location'), `/api/products/${id}`);
  assert.equal(await stores.sql(`SELECT name, price, indexed_at IS NULL FROM products WHERE id = '${id}'`), 'Desk lamp|19.99|t');

  const [first, second] = [await ask(`${api.url}/api/products/${id}`), await ask(`${api.url}/api/products/${id}`)];
  assert.deepEqual([first.headers.get('x-cache'), second.headers.get('x-cache')], ['miss', 'hit']);
  assert.deepEqual(first.json, second.json);
  assert.equal(first.json.price, 19.99);
  assert.equal(JSON.parse(await stores.redis('get', `product:${id}`)).name, 'Desk lamp');
  assert.ok((await ask(`${api.url}/api/products`)).json.items.some((item) => item.id === id));

  assert.equal((await ask(`${api.url}/api/products/${id}`, { method: 'DELETE' })).status, 204);
  assert.equal(await stores.redis('exists', `product:${id}`), '0');
  assert.equal((await ask(`${api.url}/api/products/${id}`)).status, 404);
  assert.equal((await ask(`${api.url}/api/products/${id}`, { method: 'DELETE' })).status, 404);
  assert.ok(!(await ask(`${api.url}/api/products`)).json.items.some((item) => item.id === id));
  assert.equal(await stores.sql(`SELECT deleted_at IS NOT NULL, indexed_at IS NULL FROM products WHERE id = '${id}'`), 't|t', 'kept until the index has forgotten it');
});

test('search without Elasticsearch is 503, not an empty result', async () => {
  const answer = await ask(`${api.url}/api/search?q=lamp`);
  assert.equal(answer.status, 503);
  assert.equal(answer.headers.get('retry-after'), '1');
  assert.equal(answer.json.error, 'search is unavailable');
});

test('wrong requests get JSON errors with the right status', async () => {
  const cases = [
    ['POST', '/api/products', '{not json', 400], ['POST', '/api/products', '[]', 400], ['POST', '/api/products', { name: '' }, 400],
    ['POST', '/api/products', JSON.stringify({ name: 'x'.repeat(200000), price: 1 }), 413],
    ['GET', '/api/products/1', undefined, 400], ['GET', '/api/products/%zz', undefined, 400], ['GET', '/api/products?limit=0', undefined, 400],
    ['GET', '/api/products/00000000-0000-4000-8000-000000000000', undefined, 404], ['GET', '/api/search', undefined, 400],
    ['PUT', '/api/products', {}, 405], ['GET', '/nowhere', undefined, 404], ['GET', '//', undefined, 400],
    ['POST', '/api/payments', { productId: '00000000-0000-4000-8000-000000000000', amount: 1 }, 404], ['POST', '/api/payments', { amount: 1 }, 400],
    ['POST', '/api/auth/register', { email: 'nobody', password: 'short' }, 400],
  ];
  for (const [method, path, body, status] of cases) {
    const answer = await ask(`${api.url}${path}`, { method, body, headers: fresh() });
    assert.equal(answer.status, status, `${method} ${path}: ${answer.text}`);
    assert.equal(answer.json.status, status);
    assert.ok(answer.json.error && answer.json.requestId);
  }
  assert.equal((await ask(`${api.url}/api/products`, { method: 'PUT' })).headers.get('allow'), 'GET, POST');
});

test('accounts: register, once only, log in, and pay', async () => {
  const account = { email: 'Ann@example.com', password: 'correct horse' };
  const headers = fresh();
  const registered = await post(`${api.url}/api/auth/register`, account, headers);
  assert.equal(registered.status, 201, registered.text);
  assert.equal((await post(`${api.url}/api/auth/register`, account, headers)).status, 409);
  assert.match(await stores.sql('SELECT password_hash FROM users'), /^scrypt:/);
  assert.equal((await post(`${api.url}/api/auth/login`, { ...account, password: 'wrong horse' }, headers)).status, 401);
  assert.equal((await post(`${api.url}/api/auth/login`, { ...account, email: 'bob@example.com' }, headers)).status, 401);
  const { json: { token } } = await post(`${api.url}/api/auth/login`, account, headers);
  const { json: { id } } = await post(`${api.url}/api/products`, LAMP, fresh());
  const paid = await post(`${api.url}/api/payments`, { productId: id, amount: 19.99 }, { Authorization: `Bearer ${token}` });
  assert.equal(paid.status, 201, paid.text);
  assert.equal(await stores.sql(`SELECT user_id FROM payments WHERE id = '${paid.json.id}'`), registered.json.id);
});

test('rate limits: 429 with Retry-After beyond the limit, half as much again with a token, per client, none on health', async () => {
  const headers = fresh();
  for (let n = 1; n <= 20; n += 1) {
    const answer = await post(`${api.url}/api/payments`, {}, headers);
    assert.equal(answer.status, 400);
    assert.deepEqual([answer.headers.get('x-ratelimit-limit'), answer.headers.get('x-ratelimit-remaining')], ['20', `${20 - n}`]);
  }
  const refused = await post(`${api.url}/api/payments`, {}, headers);
  assert.equal(refused.status, 429);
  assert.deepEqual([refused.json.tier, refused.json.limit], ['payment', 20]);
  const seconds = Number(refused.headers.get('retry-after'));
  assert.ok(seconds >= 1 && seconds <= 60, `${seconds}`);
  assert.equal((await post(`${api.url}/api/payments`, {}, fresh())).status, 400, 'another client is not affected');
  assert.equal((await ask(`${api.url}/api/products`, { headers })).status, 200, 'another tier is not affected');

  const { json: { token } } = await post(`${api.url}/api/auth/register`, { email: 'cid@example.com', password: 'correct horse' }, fresh());
  const statuses = [];
  for (let n = 1; n <= 31; n += 1) statuses.push((await post(`${api.url}/api/payments`, {}, { Authorization: `Bearer ${token}` })).status);
  assert.deepEqual(statuses, [...Array(30).fill(400), 429]);

  const auth = fresh();
  const logins = [];
  for (let n = 1; n <= 11; n += 1) logins.push((await post(`${api.url}/api/auth/login`, {}, auth)).status);
  assert.deepEqual(logins, [...Array(10).fill(400), 429]);

  const [key] = (await stores.redis('--raw', 'keys', `ratelimit:payment:ip:${headers['X-Forwarded-For']}`)).split('\n');
  assert.ok(Number(await stores.redis('pttl', key)) > 0);
  await stores.redis('pexpire', key, '1');
  await until('the next window', async () => (await post(`${api.url}/api/payments`, {}, headers)).status === 400, 2000);
  assert.equal((await ask(`${api.url}/health/live`, { headers })).headers.get('x-ratelimit-limit'), null);
});

test('metrics carry route templates, never ids', async () => {
  const { text } = await ask(`${api.url}/metrics`);
  assert.match(text, /http_request_duration_seconds_count\{method="GET",route="\/api\/products\/:id",status="200"\} \d+/);
  assert.match(text, /http_active_connections \d+/);
  assert.match(text, /process_cpu_user_seconds_total/);
  assert.match(text, /rate_limited_requests_total\{tier="payment"\} [1-9]/);
  assert.match(text, /dependency_up\{dependency="elasticsearch"\} 0/);
  await until('products_index_pending is above 0', async () => /products_index_pending [1-9]/.test((await ask(`${api.url}/metrics`)).text));
  assert.doesNotMatch(text, /route="[^"]*[0-9a-f]{8}-/);
});

test('a request id is taken over or made, and is in the log as JSON', async () => {
  assert.equal((await ask(`${api.url}/api/products`, { headers: { 'X-Request-Id': 'trace-42' } })).headers.get('x-request-id'), 'trace-42');
  assert.match((await ask(`${api.url}/api/products`, { headers: { 'X-Request-Id': 'bad id {}' } })).headers.get('x-request-id'), /^[0-9a-f-]{36}$/);
  const line = await until('the log line', () => api.output().split('\n').find((text) => text.includes('trace-42')));
  const { method, route, status, ms, level } = JSON.parse(line);
  assert.deepEqual({ method, route, status, level }, { method: 'GET', route: '/api/products', status: 200, level: 'info' });
  assert.ok(ms >= 0);
  assert.doesNotMatch(api.output(), /test-password|test-jwt-secret|correct horse/);
});

for (const [what, change, why] of [
  ['an authority that it does not know', { NODE_EXTRA_CA_CERTS: '' }, /self-signed certificate/],
  ['another name', { REDIS_HOST: '127.0.0.2' }, /does not match certificate's altnames/],
]) {
  test(`a Redis with a certificate of ${what} is refused`, async () => {
    const other = await startApi({ ...stores.env, ...change });
    try {
      const [line] = await until('it is told', () => other.output().match(/.*Redis is away.*/));
      assert.match(line, why);
      assert.ok((await ask(`${other.url}/health/ready`)).json.failed.includes('redis'));
    } finally {
      await other.stop('SIGKILL');
    }
  });
}

test('Redis restarts: requests go on uncached meanwhile, and are counted by the pod, then it is used again', async () => {
  const { json: { id } } = await post(`${api.url}/api/products`, LAMP, fresh());
  const headers = fresh();
  await stores.redisServer.stop('SIGKILL');
  const read = await ask(`${api.url}/api/products/${id}`);
  assert.deepEqual([read.status, read.headers.get('x-cache'), read.headers.get('x-ratelimit-limit')], [200, 'miss', '300']);
  const logins = [];
  for (let n = 1; n <= 11; n += 1) logins.push((await post(`${api.url}/api/auth/login`, {}, headers)).status);
  assert.deepEqual(logins, [...Array(10).fill(400), 429]);
  assert.deepEqual((await ask(`${api.url}/health/ready`)).json.failed, ['redis', 'elasticsearch']);
  await stores.redisServer.start();
  await until('a cache hit', async () => (await ask(`${api.url}/api/products/${id}`)).headers.get('x-cache') === 'hit');
});

test('PostgreSQL restarts: cached products are served, the rest is 503 or waits, then all is well', async () => {
  const { json: { id } } = await post(`${api.url}/api/products`, LAMP, fresh());
  await ask(`${api.url}/api/products/${id}`);
  await stores.postgres.stop('SIGINT');
  assert.deepEqual([(await ask(`${api.url}/api/products/${id}`)).status, (await ask(`${api.url}/health/live`)).status], [200, 200]);
  assert.ok((await ask(`${api.url}/health/ready`)).json.failed.includes('postgres'));
  const away = await post(`${api.url}/api/products`, LAMP, fresh());
  assert.deepEqual([away.status, away.headers.get('retry-after'), away.json.error], [503, '1', 'a store is unavailable']);
  const waiting = post(`${api.url}/api/products`, { ...LAMP, name: 'During the restart' }, fresh());
  await stores.postgres.start();
  const answer = await waiting;
  assert.equal(answer.status, 201, answer.text);
  assert.equal(await stores.sql("SELECT count(*) FROM products WHERE name = 'During the restart'"), '1');
});

test('SIGTERM under load: not ready at once, everything accepted is answered and kept, exit 0 within seconds', async () => {
  const own = await startApi({ ...stores.env, RATE_LIMIT_MAX_REQUESTS: '1000000' });
  // A connection that never asks anything must not hold the end up.
  const mute = net.connect(own.port, '127.0.0.1').on('error', () => {});
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  const created = [];
  const broken = [];
  const createOne = () => new Promise((resolve) => {
    const req = http.request(`${own.url}/api/products`, { method: 'POST', agent }, (res) => {
      let text = '';
      res.on('data', (chunk) => { text += chunk; });
      res.on('end', () => {
        if (res.statusCode === 201) created.push(JSON.parse(text).id);
        else broken.push(`${res.statusCode} ${text}`);
        resolve();
      });
      res.on('aborted', () => { broken.push('answer cut off'); resolve(); });
    });
    req.on('error', (error) => { broken.push(error.code); resolve(); });
    req.end(JSON.stringify({ ...LAMP, name: 'Under load' }));
  });
  // As in a cluster, new requests keep coming for a moment after SIGTERM.
  let routed = true;
  const workers = Array.from({ length: 4 }, async () => { while (routed) await createOne(); });
  await until('some products', () => created.length > 20);
  const terminated = Date.now();
  own.child.kill('SIGTERM');
  await until('not ready', async () => {
    const { status, json } = await ask(`${own.url}/health/ready`);
    return status === 503 && json.status === 'draining';
  }, 600);
  const before = created.length;
  await until('requests served while draining', () => created.length > before, 500);
  // The last requests meet a locked table: they are in flight long after the listener has closed.
  const locked = stores.sql('LOCK TABLE products IN EXCLUSIVE MODE; SELECT pg_sleep(2)');
  await until('the lock', async () => await stores.sql("SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' AND relation = 'products'::regclass") === '1', 1000);
  routed = false;
  await Promise.all([...workers, locked]);
  const { code } = await own.exit;
  const took = Date.now() - terminated;
  mute.destroy();
  agent.destroy();
  assert.equal(code, 0, own.output().slice(-1000));
  assert.ok(took > 2000 && took < 5000, `${took} ms`);
  assert.deepEqual(broken, []);
  assert.equal(Number(await stores.sql("SELECT count(*) FROM products WHERE name = 'Under load'")), created.length);
  await assert.rejects(ask(`${own.url}/health/live`));
});

test('SIGTERM without requests ends within the delay and little more, mute connections or not', async () => {
  const own = await startApi(stores.env);
  const mute = net.connect(own.port, '127.0.0.1').on('error', () => {});
  const started = Date.now();
  const { code } = await own.stop();
  assert.equal(code, 0);
  assert.ok(Date.now() - started < 1800, `${Date.now() - started} ms`);
  mute.destroy();
});
