// The whole process in front of a small HTTP server that stands for the API and can misbehave as a real one would not on demand.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import test, { after, before } from 'node:test';
import { caller, startReceiver } from '../../api/tests/receiver.js';

const main = new URL('../src/main.js', import.meta.url).pathname;
const PRODUCT = { id: '7f1f0ad2-9d0b-4d5e-8d5f-0d3f8ad0c001', name: '<b>Lamp</b>', description: 'Warm & "bright"', price: 19.9 };
const seen = [];
const children = [];
let api;
let web;

async function until(what, condition, ms = 10000) {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    const value = await condition();
    if (value) return value;
    await new Promise((resolve) => { setTimeout(resolve, 30); });
  }
  throw new Error(`not within ${ms} ms: ${what}`);
}

async function startWeb(env) {
  const child = spawn(process.execPath, [main], { env: { PATH: process.env.PATH, PORT: '0', SHUTDOWN_DELAY_MS: '700', ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  children.push(child);
  let output = '';
  child.stdout.on('data', (chunk) => { output += chunk; });
  child.stderr.on('data', (chunk) => { output += chunk; });
  const exit = new Promise((resolve) => { child.once('exit', (code) => resolve(code)); });
  const port = await until('listening', () => /"listening","port":(\d+)/.exec(output)?.[1]);
  return { child, exit, port: Number(port), url: `http://127.0.0.1:${port}`, output: () => output };
}

function request(url, { method = 'GET', headers = {}, body, agent } = {}) {
  return new Promise((resolve, reject) => {
    const req = http.request(url, { method, headers, agent }, (res) => {
      let text = '';
      res.setEncoding('utf8');
      res.on('data', (chunk) => { text += chunk; });
      res.on('aborted', () => reject(new Error('answer cut off')));
      res.on('end', () => resolve({ status: res.statusCode, headers: res.headers, text }));
    });
    req.on('error', reject);
    req.end(body);
  });
}

before(async () => {
  api = http.createServer(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    seen.push({ method: req.method, url: req.url, headers: req.headers, body });
    const json = (status, value, headers = {}) => res.writeHead(status, { 'Content-Type': 'application/json', ...headers }).end(JSON.stringify(value));
    if (req.url.startsWith('/api/products?')) json(200, { items: [PRODUCT] });
    else if (req.url === '/api/products' && req.method === 'POST') {
      const { price } = JSON.parse(body);
      if (price === null) json(400, { error: 'product is not valid', errors: { price: 'must be a number' } });
      else json(201, PRODUCT);
    } else if (req.url === `/api/products/${PRODUCT.id}`) json(200, PRODUCT, { 'X-Cache': 'hit' });
    else if (req.url.startsWith('/api/search')) json(200, { items: req.url.includes('lamp') ? [PRODUCT] : [] });
    else if (req.url === '/api/limited') json(429, { error: 'too many requests' }, { 'Retry-After': 7, 'X-RateLimit-Limit': 10 });
    else if (req.url === '/api/slow') {
      res.writeHead(200, { 'Content-Type': 'text/plain' }).write('first,');
      setTimeout(() => res.end('second'), 400);
    } else if (req.url === '/api/never') setTimeout(() => res.destroy(), 3000);
    else if (req.url === '/api/cut') {
      res.writeHead(200, { 'Content-Length': 100 }).write('half');
      setTimeout(() => res.destroy(), 50);
    } else json(404, { error: 'product not found' });
  });
  await new Promise((resolve) => { api.listen(0, '127.0.0.1', resolve); });
  web = await startWeb({ API_URL: `http://127.0.0.1:${api.address().port}`, API_TIMEOUT_MS: '1000' });
});
after(() => {
  for (const child of children) child.kill('SIGKILL');
  api?.closeAllConnections();
  api?.close();
});

test('service.js and tracing.js are the same files as the API’s', () => {
  const text = (path) => readFileSync(new URL(path, import.meta.url), 'utf8');
  for (const name of ['service.js', 'tracing.js']) assert.equal(text(`../src/${name}`), text(`../../api/src/${name}`), name);
});

test('a missing or wrong API_URL: one line that names it, exit 1', () => {
  for (const [env, message] of [[{}, /^citadelbuy-web: cannot start: environment variable API_URL not set\n$/], [{ API_URL: 'citadelbuy-api' }, /API_URL must be an http URL/]]) {
    const ended = spawnSync(process.execPath, [main], { env: { PATH: process.env.PATH, ...env }, encoding: 'utf8' });
    assert.equal(ended.status, 1);
    assert.match(ended.stderr, message);
  }
});

test('pages show the API’s products, escaped', async () => {
  for (const path of ['/', '/search?q=lamp', `/products/${PRODUCT.id}`]) {
    const { status, headers, text } = await request(web.url + path);
    assert.equal(status, 200, text);
    assert.match(headers['content-type'], /text\/html/);
    assert.ok(text.includes('&lt;b&gt;Lamp&lt;/b&gt;') && text.includes('Warm &amp; &quot;bright&quot;') && text.includes('$19.90'), path);
    assert.ok(!text.includes('<b>Lamp'), path);
  }
  assert.match((await request(`${web.url}/search?q=%22%3E%3Cscript%3E`)).text, /Nothing found for &quot;&gt;&lt;script&gt;/);
  assert.equal((await request(`${web.url}/search`)).status, 200);
  const missing = await request(`${web.url}/products/unknown`);
  assert.equal(missing.status, 404);
  assert.match(missing.text, /product not found/);
});

test('the form creates a product, its errors are shown', async () => {
  const headers = { 'Content-Type': 'application/x-www-form-urlencoded' };
  const made = await request(`${web.url}/products`, { method: 'POST', headers, body: 'name=Lamp+1&price=19.9' });
  assert.deepEqual([made.status, made.headers.location], [303, `/products/${PRODUCT.id}`]);
  assert.deepEqual(JSON.parse(seen.at(-1).body), { name: 'Lamp 1', description: '', price: 19.9 });
  const refused = await request(`${web.url}/products`, { method: 'POST', headers, body: 'name=Lamp' });
  assert.equal(refused.status, 400);
  assert.match(refused.text, /product is not valid; price must be a number/);
});

test('/api/* goes to the API and back unchanged; the client’s own X-Forwarded-For is not believed', async () => {
  const body = JSON.stringify({ price: 1 });
  const headers = { 'Content-Type': 'application/json', Authorization: 'Bearer t', 'X-Forwarded-For': '203.0.113.9', 'X-Request-Id': 'trace-7', Connection: 'keep-alive, x-hop', 'X-Hop': '1' };
  const { status, text } = await request(`${web.url}/api/products`, { method: 'POST', headers, body });
  assert.equal(status, 201);
  assert.deepEqual(JSON.parse(text), PRODUCT);
  const got = seen.at(-1);
  assert.deepEqual(
    [got.method, got.url, got.body, got.headers.authorization, got.headers['x-forwarded-for'], got.headers['x-request-id'], got.headers['x-hop']],
    ['POST', '/api/products', body, 'Bearer t', '127.0.0.1', 'trace-7', undefined],
  );
  const limited = await request(`${web.url}/api/limited`);
  assert.deepEqual([limited.status, limited.headers['retry-after'], limited.headers['x-ratelimit-limit']], [429, '7', '10']);
  assert.equal((await request(`${web.url}/api/products/${PRODUCT.id}`)).headers['x-cache'], 'hit');
});

test('behind a trusted proxy the client’s address is passed on', async () => {
  const behind = await startWeb({ API_URL: `http://127.0.0.1:${api.address().port}`, TRUST_PROXY: 'true' });
  await request(`${behind.url}/api/products?limit=1`, { headers: { 'X-Forwarded-For': '203.0.113.9' } });
  assert.equal(seen.at(-1).headers['x-forwarded-for'], '203.0.113.9, 127.0.0.1');
  behind.child.kill('SIGKILL');
});

test('answers are streamed, and one cut off by the API is cut off here', async () => {
  const times = [];
  const started = Date.now();
  await new Promise((resolve, reject) => {
    http.get(`${web.url}/api/slow`, (res) => {
      res.on('data', () => times.push(Date.now() - started));
      res.on('end', resolve);
    }).on('error', reject);
  });
  assert.ok(times[0] < 300 && times.at(-1) >= 350, `${times}`);
  await assert.rejects(request(`${web.url}/api/cut`));
});

test('health does not ask the API, metrics have route templates', async () => {
  const before = seen.length;
  assert.deepEqual([(await request(`${web.url}/api/health`)).text, seen.length], ['{"status":"ok"}', before]);
  const { text } = await request(`${web.url}/metrics`);
  assert.match(text, /http_request_duration_seconds_count\{method="GET",route="\/products\/:id",status="200"\} 1/);
  assert.match(text, /route="\/api\/\*"/);
});

test('the API away or too slow: 502 and 504, JSON below /api, a page elsewhere', async () => {
  const slow = await request(`${web.url}/api/never`);
  assert.deepEqual([slow.status, JSON.parse(slow.text).error], [504, 'the API did not answer in time']);
  const alone = await startWeb({ API_URL: 'http://127.0.0.1:9' });
  for (const options of [{}, { method: 'POST', body: 'x'.repeat(500000) }]) {
    const away = await request(`${alone.url}/api/products`, options);
    assert.equal(away.status, 502);
    assert.deepEqual([JSON.parse(away.text).error, away.headers['retry-after']], ['the API is not available', '1']);
  }
  const page = await request(`${alone.url}/`);
  assert.equal(page.status, 502);
  assert.match(page.text, /<h1>502<\/h1>/);
  assert.equal((await request(`${alone.url}/api/health`)).status, 200);
  alone.child.kill('SIGKILL');
});

test('a request goes on with the caller’s trace, and the API with the request’s; log lines name it', async (t) => {
  const receiver = await startReceiver();
  t.after(() => receiver.stop());
  const env = { API_URL: `http://127.0.0.1:${api.address().port}`, OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url };
  const own = await startWeb(env);
  /** One request with a caller's trace: what the API saw, the request's span and that of its call. */
  async function traced(path, options = {}, from = own) {
    const { traceId, headers } = caller();
    const answer = await request(from.url + path, { ...options, headers });
    const span = await until('its span', () => receiver.spans.find(({ kind, ...one }) => kind === 2 && one.traceId === traceId));
    const call = await until('the span of its call', () => receiver.spans.find(({ kind, ...one }) => kind === 3 && one.traceId === traceId));
    return { answer, traceId, span, call, parent: seen.at(-1).headers.traceparent };
  }
  for (const [path, options, route] of [['/search?q=lamp', {}, 'GET /search'], ['/api/products', { method: 'POST', body: '{"price":1}' }, 'POST /api/*']]) {
    const { traceId, span, call, parent } = await traced(path, options);
    assert.deepEqual([span.service, span.name, span.parentSpanId, span.status.code], ['citadelbuy-web', route, '00f067aa0ba902b7', 0]);
    assert.deepEqual([call.name, call.parentSpanId, parent], [route.split(' ')[0], span.spanId, `00-${traceId}-${call.spanId}-01`]);
    const line = await until('the log line', () => own.output().split('\n').find((text) => text.includes(`"traceId":"${traceId}"`)));
    assert.deepEqual([JSON.parse(line).msg, JSON.parse(line).spanId], ['request', span.spanId]);
    assert.deepEqual(call.attributes, { 'http.request.method': call.name, 'server.address': '127.0.0.1', 'server.port': api.address().port, 'http.response.status_code': route.startsWith('GET') ? 200 : 201 });
  }
  const missing = await traced('/products/unknown');
  assert.deepEqual([missing.span.status.code, missing.call.status.code, missing.call.attributes['error.type']], [0, 2, '404']);
  const cut = await traced('/api/never', {}, await startWeb({ ...env, API_TIMEOUT_MS: '100' }));
  assert.deepEqual([cut.answer.status, cut.span.status.code, cut.span.attributes['error.type'], cut.call.attributes['error.type']], [504, 2, '504', 'ETIMEDOUT']);

  const unwanted = caller({ sampled: false });
  await request(`${own.url}/api/products?limit=1`, { headers: unwanted.headers });
  assert.match(seen.at(-1).headers.traceparent, new RegExp(`^00-${unwanted.traceId}-[0-9a-f]{16}-00$`), 'the API is told not to trace either');
  for (const path of ['/api/health', '/metrics']) await request(own.url + path, { headers: caller().headers });
  await traced('/');
  assert.deepEqual(receiver.spans.filter(({ name, ...one }) => one.traceId === unwanted.traceId || /health|metrics/.test(name)), []);
  assert.doesNotMatch(receiver.text(), /lamp|unknown/);
});

test('without tracing the caller’s traceparent goes to the API as it came', async () => {
  const { headers } = caller();
  await request(`${web.url}/api/products?limit=1`, { headers });
  assert.equal(seen.at(-1).headers.traceparent, headers.traceparent);
});

test('SIGTERM under load: not ready at once, every accepted request is answered, exit 0', async () => {
  const own = await startWeb({ API_URL: `http://127.0.0.1:${api.address().port}` });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  const broken = [];
  let answered = 0;
  // As in a cluster, new requests keep coming for a moment after SIGTERM.
  let routed = true;
  const workers = Array.from({ length: 4 }, async (_, n) => {
    while (routed) {
      try {
        const options = n % 2 ? { method: 'POST', body: '{"price":1}' } : {};
        const { status } = await request(`${own.url}/api/products${n % 2 ? '' : '?limit=1'}`, { agent, ...options });
        answered += 1;
        if (status >= 300) broken.push(status);
      } catch (error) {
        broken.push(error.code ?? error.message);
      }
    }
  });
  await until('some answers', () => answered > 50);
  const terminated = Date.now();
  own.child.kill('SIGTERM');
  await until('not ready', async () => (await request(`${own.url}/api/health`)).status === 503, 600);
  const before = answered;
  await until('the listener is about to close', () => Date.now() - terminated > 600);
  routed = false;
  const last = await request(`${own.url}/api/slow`);
  assert.deepEqual([last.text, last.headers.connection], ['first,second', 'close']);
  await Promise.all(workers);
  assert.equal(await own.exit, 0, own.output().slice(-1000));
  assert.ok(Date.now() - terminated < 3000, `${Date.now() - terminated} ms`);
  agent.destroy();
  assert.ok(answered > before);
  assert.deepEqual(broken, []);
});
