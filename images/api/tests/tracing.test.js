// Traces of the whole process, with real PostgreSQL and Redis, into a receiver that can be slow and away. A small server stands for Elasticsearch.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import test, { after, before } from 'node:test';
import { migrationSettings } from '../src/config.js';
import { migrate } from '../src/migrate.js';
import { caller, startReceiver } from './receiver.js';
import { ask, startApi, startStores, until } from './stores.js';

const SERVER = 2;
const CLIENT = 3;
const ERROR = 2;
const PUBLIC_MAX = { RATE_LIMIT_PUBLIC_MAX: '1000000' };
const main = new URL('../src/main.js', import.meta.url).pathname;
const tracing = new URL('../src/tracing.js', import.meta.url).href;
const searched = [];
let stores;
let elastic;
let receiver;
let api;
let env;

const traced = (url, more = {}) => ({ ...env, OTEL_EXPORTER_OTLP_ENDPOINT: url, ...more });
const spansOf = (traceId, from = receiver) => from.spans.filter((span) => span.traceId === traceId);
/** All spans of a trace, once the request's own is there: it ends last, and what ended before comes no later. */
const trace = (traceId, from = receiver) => until(`the trace ${traceId}`, () => spansOf(traceId, from).some(({ kind }) => kind === SERVER) && spansOf(traceId, from));
/** A request of which the trace has come: what was to come before it has come too. */
async function marker(url, from = receiver) {
  const { traceId, headers } = caller();
  await ask(`${url}/api/products/marker`, { headers });
  await trace(traceId, from);
}
/** A process or receiver of a test's own, which ends with the test. */
async function during(t, starting) {
  const started = await starting;
  t.after(() => started.stop('SIGKILL'));
  return started;
}
const lines = (from, text) => from.output().split('\n').slice(0, -1).filter((line) => line.includes(text)).map((line) => JSON.parse(line));

before(async () => {
  stores = await startStores();
  await migrate(migrationSettings(stores.env), { say: () => {} });
  elastic = http.createServer(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    searched.push({ url: req.url, traceparent: req.headers.traceparent });
    const answer = (status, value) => res.writeHead(status).end(JSON.stringify(value));
    if (req.url.includes('_settings')) answer(200, { products: { settings: { index: { uuid: 'one' } } } });
    else if (req.url.startsWith('/_bulk')) {
      const targets = body.split('\n').filter((line) => line.includes('"_id"')).map((line) => Object.values(JSON.parse(line))[0]);
      answer(200, { items: targets.map(({ _id }) => ({ index: { _id, status: 200 } })) });
    } else if (body.includes('Timbuktu')) answer(400, { error: { reason: 'cannot parse Timbuktu' } });
    else answer(200, { hits: { hits: [] } });
  });
  await new Promise((resolve) => { elastic.listen(0, '127.0.0.1', resolve); });
  env = { ...stores.env, ...PUBLIC_MAX, ELASTICSEARCH_URL: `http://127.0.0.1:${elastic.address().port}` };
  receiver = await startReceiver();
  api = await startApi(traced(receiver.url));
  await until('Redis is connected', () => api.output().includes('Redis is connected'));
});
after(async () => {
  await api?.stop('SIGKILL');
  await receiver?.stop();
  elastic?.closeAllConnections();
  elastic?.close();
  await stores?.stop();
});

test('a request and its calls are one trace, which goes on from the caller’s and to Elasticsearch; log lines name it', async () => {
  const { traceId, headers } = caller();
  const made = await ask(`${api.url}/api/products`, { method: 'POST', body: { name: 'Lamp', price: 1 }, headers: { ...headers, 'X-Request-Id': 'request-1' } });
  assert.deepEqual([made.status, made.headers.get('x-request-id'), made.headers.get('traceparent')], [201, 'request-1', null], made.text);
  const spans = await trace(traceId);
  const own = spans.find(({ kind }) => kind === SERVER);
  assert.deepEqual([own.service, own.name, own.parentSpanId, own.status.code], ['citadelbuy-api', 'POST /api/products', '00f067aa0ba902b7', 0]);
  assert.deepEqual(own.attributes, { 'http.request.method': 'POST', 'http.route': '/api/products', 'citadelbuy.request_id': 'request-1', 'http.response.status_code': 201 });

  const calls = spans.filter((span) => span !== own);
  assert.deepEqual(calls.map(({ name }) => name), ['EVAL', 'INSERT products', 'bulk', 'UPDATE products']);
  for (const call of calls) assert.deepEqual([call.kind, call.parentSpanId, call.status.code], [CLIENT, own.spanId, 0], call.name);
  const [count, insert, bulk] = calls;
  assert.deepEqual(count.attributes, { 'db.system.name': 'redis', 'server.address': '127.0.0.1', 'server.port': Number(env.REDIS_PORT), 'db.operation.name': 'EVAL' });
  const { 'db.query.text': statement, ...rest } = insert.attributes;
  assert.deepEqual(rest, {
    'db.system.name': 'postgresql', 'db.namespace': 'postgres', 'server.address': '127.0.0.1', 'server.port': Number(env.DATABASE_PORT),
    'db.operation.name': 'INSERT', 'db.collection.name': 'products',
  });
  assert.match(statement, /^INSERT INTO products \(id, name, description, price\) VALUES \(\$1, \$2, \$3, \$4\)/);
  assert.deepEqual([bulk.attributes['db.system.name'], bulk.attributes['http.request.method'], bulk.attributes['http.response.status_code']], ['elasticsearch', 'POST', 200]);
  assert.equal(searched.find(({ url, traceparent }) => url.startsWith('/_bulk') && traceparent)?.traceparent, `00-${traceId}-${bulk.spanId}-01`);

  const [line] = lines(api, '"requestId":"request-1"');
  assert.deepEqual([line.msg, line.traceId, line.spanId], ['request', traceId, own.spanId]);
});

test('probes, metrics and work in the background are not traced', async () => {
  const seen = receiver.spans.length;
  await Promise.all(['/health/live', '/health/ready', '/metrics'].map((path) => ask(api.url + path, { headers: caller().headers })));
  const asked = searched.length;
  await until('a round in the background', () => searched.slice(asked).filter(({ url }) => url.includes('_settings')).length > 1);
  const { traceId, headers } = caller();
  await ask(`${api.url}/api/products`, { headers });
  await trace(traceId);
  assert.deepEqual(receiver.spans.slice(seen).filter((span) => span.traceId !== traceId), []);
  assert.deepEqual(searched.slice(asked).filter(({ traceparent }) => traceparent), []);
});

test('no value that a client sent, no secret and no error’s message is in a trace', async () => {
  const address = { 'X-Forwarded-For': '198.51.100.77' };
  const account = { email: 'zoe@example.com', password: 'correct horse' };
  const post = (path, body, headers = {}) => ask(api.url + path, { method: 'POST', body, headers: { ...address, ...headers } });
  const { json: { id } } = await post('/api/products', { name: 'Zanzibar', description: 'Madagascar', price: 47.11 });
  const { json: { token, id: user } } = await post('/api/auth/register', account);
  await post('/api/auth/login', account);
  await post('/api/payments', { productId: id, amount: 47.11 }, { Authorization: `Bearer ${token}` });
  for (const path of [`/api/products/${id}`, `/api/products?limit=17&secret=Samarkand`, '/api/search?q=Samarkand', '/api/Samarkand', '/api/products/Samarkand']) await ask(api.url + path, { headers: address });
  const { traceId, headers } = caller();
  const failed = await ask(`${api.url}/api/search?q=Timbuktu`, { headers });
  assert.equal(failed.status, 503);
  assert.match(lines(api, traceId).find(({ msg }) => msg === 'search failed').error, /Timbuktu/, 'the log has it');
  await marker(api.url);
  assert.ok(receiver.spans.some(({ name }) => name === 'GET unmatched'));
  const secrets = [account.email, account.password, token, user, id, 'Zanzibar', 'Madagascar', '47.11', 'Samarkand', 'Timbuktu', '198.51.100.77', env.DATABASE_PASSWORD, env.JWT_SECRET];
  assert.deepEqual(secrets.filter((text) => receiver.text().includes(text)), []);
});

test('what fails is marked: 5xx with where it came from, a call with its kind of error; 4xx is the caller’s', async () => {
  const { traceId, headers } = caller();
  assert.equal((await ask(`${api.url}/api/search?q=Timbuktu`, { headers })).status, 503);
  const spans = await trace(traceId);
  const own = spans.find(({ kind }) => kind === SERVER);
  assert.deepEqual([own.status.code, own.attributes['error.type'], own.attributes['http.response.status_code']], [ERROR, '503', 503]);
  const [event] = own.events;
  assert.deepEqual([event.name, event.attributes['exception.type']], ['exception', 'Error']);
  assert.match(event.attributes['exception.stacktrace'], /^ +at .*products\.js/);
  const call = spans.find(({ name }) => name === 'search');
  assert.deepEqual([call.status.code, call.attributes['error.type']], [ERROR, '400']);

  const other = caller();
  assert.equal((await ask(`${api.url}/api/products/00000000-0000-4000-8000-000000000000`, other)).status, 404);
  const [missing] = (await trace(other.traceId)).filter(({ kind }) => kind === SERVER);
  assert.deepEqual([missing.status.code, missing.attributes['http.response.status_code'], missing.events], [0, 404, []]);

  await stores.redisServer.stop('SIGKILL');
  const away = caller();
  assert.equal((await ask(`${api.url}/api/products`, away)).status, 200);
  const count = (await trace(away.traceId)).find(({ name }) => name === 'EVAL');
  assert.deepEqual([count.status.code, count.attributes['error.type']], [ERROR, 'Error']);
  await stores.redisServer.start();
});

test('a caller’s choice is kept; else the ratio chooses', async (t) => {
  const none = await during(t, startApi(traced(receiver.url, { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0', OTEL_SERVICE_NAME: 'other-name' })));
  const unwanted = caller({ sampled: false });
  await ask(`${api.url}/api/products`, { headers: { ...unwanted.headers, 'X-Request-Id': 'unwanted' } });
  await ask(`${none.url}/api/products`, { headers: { 'X-Request-Id': 'unchosen' } });
  await ask(`${api.url}/api/products`, { headers: { 'X-Request-Id': 'chosen', traceparent: '00-nonsense-01' } });
  await Promise.all([marker(api.url), marker(none.url)]);
  const ids = receiver.spans.map((span) => span.attributes['citadelbuy.request_id']);
  assert.deepEqual(['unwanted', 'unchosen', 'chosen'].map((id) => ids.includes(id)), [false, false, true]);
  assert.deepEqual([lines(api, '"unwanted"')[0].traceId, lines(none, '"unchosen"')[0].traceId], [undefined, undefined]);
  assert.match(lines(api, '"chosen"')[0].traceId, /^[0-9a-f]{32}$/);
  assert.ok(receiver.spans.some(({ service }) => service === 'other-name'), 'by the caller’s choice');
});

test('SIGTERM: the last spans are delivered before the end', async (t) => {
  const served = await during(t, startApi(traced(receiver.url, { SHUTDOWN_DELAY_MS: '0' })));
  const { traceId, headers } = caller();
  await ask(`${served.url}/api/products`, { headers });
  assert.equal((await served.stop()).code, 0);
  assert.equal(spansOf(traceId).length, 3);
});

test('a receiver that does not answer: no request waits for it, it is told once, and the end comes all the same', async (t) => {
  const slow = await during(t, startReceiver());
  slow.hold();
  const served = await during(t, startApi(traced(slow.url)));
  for (let n = 0; n < 20; n += 1) assert.equal((await ask(`${served.url}/api/products`)).status, 200);
  await until('spans came and got no answer', () => slow.exports > 0);
  assert.ok(slow.exports < 10, `${slow.exports}: as many as there were requests, had they waited`);
  await until('the loss is told', () => lines(served, 'traces are lost').length === 1);
  slow.release();
  await marker(served.url, slow);
  await until('all is well again', () => lines(served, 'traces are taken again').length === 1);
  slow.hold();
  await ask(`${served.url}/api/products`);
  assert.equal((await served.stop()).code, 0, served.output().slice(-1000));
  assert.match(served.output(), /"msg":"stopped","clean":true/);
});

test('spans that wait are bounded: beyond them, new ones are dropped', async (t) => {
  const slow = await during(t, startReceiver());
  const script = `import { endRequest, startTracing, traceRequest } from '${tracing}';
    const stop = await startTracing('api', console, { OTEL_EXPORTER_OTLP_ENDPOINT: '${slow.url}' });
    for (let n = 0; n < 20000; n += 1) traceRequest({ req: { method: 'GET', headers: {} }, route: '/', requestId: 'r' }, () => endRequest(200));
    await stop();`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'inherit' });
  const [code] = await once(child, 'exit');
  assert.deepEqual([code, slow.spans.length], [0, 512 + 2048], 'one export under way, and what waits for the next');
});

test('a receiver that is away is told once, with the reason, and used again when it comes', async (t) => {
  const gone = await during(t, startReceiver());
  await gone.stop();
  const served = await during(t, startApi(traced(gone.url)));
  await until('the loss is told', async () => {
    assert.equal((await ask(`${served.url}/api/products`)).status, 200);
    return lines(served, 'traces are lost').length;
  });
  const [line] = lines(served, 'traces are lost');
  assert.deepEqual([line.level, line.url, line.code, line.traceId], ['warn', `${gone.url}/v1/traces`, 'ECONNREFUSED', undefined]);
  const back = await during(t, startReceiver(gone.port));
  await until('a trace comes', async () => {
    await ask(`${served.url}/api/products`);
    return back.spans.length;
  });
  await until('it is told', () => lines(served, 'traces are taken again').length);
  assert.deepEqual([lines(served, 'traces are lost').length, lines(served, 'traces are taken again').length], [1, 1]);
});

test('without an endpoint nothing is traced, and the library is not loaded', async (t) => {
  const count = (endpoint) => {
    const script = `import { createRequire } from 'node:module';
      import { startTracing } from '${tracing}';
      await startTracing('api', console, { OTEL_EXPORTER_OTLP_ENDPOINT: '${endpoint}' });
      console.log(Object.keys(createRequire('${main}').cache).filter((path) => /@opentelemetry.(sdk|core|context|exporter)/.test(path)).length);`;
    return Number(spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' }).stdout);
  };
  assert.equal(count(''), 0);
  assert.ok(count('http://127.0.0.1:9') > 10);
  const served = await during(t, startApi(traced('', { OTEL_TRACES_SAMPLER_ARG: '1' })));
  await ask(`${served.url}/api/products`, { headers: { ...caller().headers, 'X-Request-Id': 'untraced' } });
  const line = await until('the log line', () => lines(served, '"untraced"')[0]);
  assert.deepEqual([line.msg, line.traceId], ['request', undefined]);
});

test('wrong settings: one line that names all of them, exit 1', () => {
  const ended = (more) => spawnSync(process.execPath, [main], { env: { PATH: process.env.PATH, ...traced('http://127.0.0.1:9', more) }, encoding: 'utf8', timeout: 20000 });
  for (const OTEL_TRACES_SAMPLER_ARG of ['1.1', '-0.1', 'half', ' ']) {
    const { status, stderr } = ended({ OTEL_TRACES_SAMPLER_ARG });
    assert.deepEqual([status, stderr], [1, 'citadelbuy-api: cannot start: environment variable OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1\n']);
  }
  const { status, stderr } = ended({ OTEL_EXPORTER_OTLP_ENDPOINT: 'jaeger:4318', OTEL_TRACES_SAMPLER: 'always_on', OTEL_TRACES_SAMPLER_ARG: '2' });
  assert.deepEqual([status, stderr], [1, 'citadelbuy-api: cannot start: environment variable OTEL_EXPORTER_OTLP_ENDPOINT must be an http or https URL; OTEL_TRACES_SAMPLER must be parentbased_traceidratio; OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1\n']);
});
