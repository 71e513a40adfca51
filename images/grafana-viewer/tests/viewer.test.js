// The whole process in front of a small HTTP server that stands for Prometheus.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test, { after, before } from 'node:test';
import { localPath } from '../src/app.js';
import { viewerSettings } from '../src/config.js';
import { createSessions } from '../src/sessions.js';

const main = new URL('../src/main.js', import.meta.url).pathname;
const PASSWORD = 'correct horse battery';
const PROXY = '/api/datasources/proxy/uid/prometheus/api/v1';
const seen = [];
let folder;
let prometheus;
let viewer;

function write(name, content) {
  const file = path.join(folder, name);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
  return file;
}

async function until(what, condition, ms = 10000) {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    const value = await condition();
    if (value) return value;
    await new Promise((resolve) => { setTimeout(resolve, 30); });
  }
  throw new Error(`not within ${ms} ms: ${what}`);
}

async function start(env) {
  const child = spawn(process.execPath, [main], { env: { PATH: process.env.PATH, GF_SERVER_HTTP_PORT: '0', GF_PATHS_PROVISIONING: path.join(folder, 'provisioning'), SHUTDOWN_DELAY_MS: '100', ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (chunk) => { output += chunk; });
  child.stderr.on('data', (chunk) => { output += chunk; });
  const exit = new Promise((resolve) => { child.once('close', (code) => resolve(code)); });
  await Promise.race([until('listening', () => /"listening"/.test(output)), exit]);
  const port = /"listening","port":(\d+)/.exec(output)?.[1];
  return { child, exit, url: `http://127.0.0.1:${port}`, output: () => output };
}

const basic = (user, password) => ({ Authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}` });
const ask = (target, { headers = basic('boss', PASSWORD), ...options } = {}) => fetch(`${viewer.url}${target}`, { redirect: 'manual', headers, ...options });
const signIn = (password, headers = {}) => fetch(`${viewer.url}/login`, { method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: JSON.stringify({ user: 'boss', password }) });
const client = (address) => ({ 'X-Forwarded-For': address });

before(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'viewer-'));
  prometheus = http.createServer(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    seen.push({ method: req.method, url: req.url, body, headers: req.headers });
    if (req.url.includes('never')) return;
    if (req.url.includes('elsewhere')) res.writeHead(302, { Location: 'http://127.0.0.1:1/' }).end();
    else if (`${req.url}${body}`.includes('broken')) res.writeHead(400, { 'Content-Type': 'application/json' }).end('{"status":"error","error":"parse error"}');
    else res.writeHead(200, { 'Content-Type': 'application/json' }).end('{"status":"success","data":[]}');
  });
  await new Promise((resolve) => { prometheus.listen(0, '127.0.0.1', resolve); });
  write('provisioning/datasources/main.yaml', `apiVersion: 1
datasources:
  - {name: Prometheus, uid: prometheus, type: prometheus, access: proxy, url: "http://127.0.0.1:${prometheus.address().port}/", isDefault: true}
  - {name: Alerts, uid: alerts, type: alertmanager, url: "http://127.0.0.1:1"}
  - {name: Gone, uid: gone, type: prometheus, url: "http://127.0.0.1:1"}
  - {name: Logs, uid: logs, type: victoriametrics-logs-datasource, url: "http://127.0.0.1:${prometheus.address().port}"}
  - {name: "J<ger", uid: jaeger, type: jaeger, url: "http://127.0.0.1:${prometheus.address().port}", jsonData: {tracesToLogsV2: {datasourceUid: logs}}}
`);
  write('provisioning/datasources/broken.yaml', 'apiVersion: 1\ndatasources: [{name: X, uid: x, type: prometheus, url: "ftp://x"}]\n');
  write('provisioning/dashboards/main.yaml', `apiVersion: 1\nproviders:\n  - {name: default, folder: Shop, type: file, options: {path: ${folder}/dashboards}}\n`);
  // As Kubernetes mounts a ConfigMap.
  write('dashboards/..2026/one.json', { uid: 'one', title: 'One & <only>', panels: [] });
  symlinkSync('..2026', path.join(folder, 'dashboards/..data'));
  symlinkSync('..data/one.json', path.join(folder, 'dashboards/one.json'));
  write('dashboards/copy.json', { uid: 'copy', title: 'Copy', panels: [], tags: ['x'] });
  write('dashboards/same.json', { uid: 'copy', title: 'Same', panels: [] });
  write('dashboards/torn.json', '{"uid": "torn", ');
  write('dashboards/bare.json', { panels: [] });
  viewer = await start({ GF_SECURITY_ADMIN_USER: 'boss', GF_SECURITY_ADMIN_PASSWORD__FILE: write('password', `${PASSWORD}\n`), GF_DATAPROXY_TIMEOUT: '1', GF_USERS_ALLOW_SIGN_UP: 'false', TRUST_PROXY: 'true' });
});
after(() => {
  viewer?.child.kill('SIGKILL');
  prometheus?.closeAllConnections();
  prometheus?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('service.js and tracing.js are the same files as the API’s', () => {
  const read = (file) => readFileSync(new URL(file, import.meta.url), 'utf8');
  for (const name of ['service.js', 'tracing.js']) assert.equal(read(`../src/${name}`), read(`../../api/src/${name}`), name);
});

for (const [what, env, message] of [
  ['no password', {}, /GF_SECURITY_ADMIN_PASSWORD not set/],
  ['an empty password', { GF_SECURITY_ADMIN_PASSWORD: '' }, /GF_SECURITY_ADMIN_PASSWORD not set/],
  ['the password admin', { GF_SECURITY_ADMIN_PASSWORD: 'admin' }, /placeholder that everybody knows/],
  ['the password changeme', { GF_SECURITY_ADMIN_PASSWORD: 'changeme' }, /placeholder that everybody knows/],
  ['the password CHANGE_ME_NOW', { GF_SECURITY_ADMIN_PASSWORD: 'CHANGE_ME_NOW' }, /placeholder that everybody knows/],
  ['a password file that is not there', { GF_SECURITY_ADMIN_PASSWORD__FILE: '/nowhere' }, /GF_SECURITY_ADMIN_PASSWORD__FILE names cannot be read/],
  ['a password and a file', { GF_SECURITY_ADMIN_PASSWORD: 'x1y2z3', GF_SECURITY_ADMIN_PASSWORD__FILE: '/nowhere' }, /are both set/],
]) {
  test(`does not start with ${what}`, async () => {
    const refused = await start(env);
    // One that did start would run on.
    refused.child.kill('SIGKILL');
    assert.equal(await refused.exit, 1);
    assert.match(refused.output(), message);
    assert.equal(refused.output().trim().split('\n').length, 1);
  });
}

test('any GF_ variable may be a file', () => {
  const settings = viewerSettings({ GF_SECURITY_ADMIN_PASSWORD: 'good enough', GF_SECURITY_ADMIN_USER__FILE: write('user', 'chief\n'), GF_SERVER_HTTP_PORT__FILE: write('port', '3100') });
  assert.equal(settings.GF_SECURITY_ADMIN_USER, 'chief');
  assert.equal(settings.PORT, 3100);
});

test('health, metrics and the login page are open', async () => {
  const health = await (await ask('/api/health', { headers: {} })).json();
  assert.equal(health.database, 'ok');
  assert.ok(health.version && health.commit);
  const metrics = await (await ask('/metrics', { headers: {} })).text();
  assert.match(metrics, /^grafana_viewer_dashboards 2$/m);
  assert.match(metrics, /^grafana_viewer_provisioning_problems 4$/m);
  const page = await ask('/login?redirect=//evil.example', { headers: {} });
  assert.match(await page.text(), /name="redirect" value="\/"/);
  assert.match(page.headers.get('content-security-policy'), /default-src 'none'; script-src 'self'; style-src 'self'/);
});

test('everything else wants a login', async () => {
  for (const target of ['/api/search', '/api/dashboards/uid/one', '/api/datasources', `${PROXY}/query?query=up`, `${PROXY}/label/job/values`]) assert.equal((await ask(target, { headers: {} })).status, 401, target);
  for (const target of ['/', '/dashboards', '/d/one', '/d/one/one']) {
    const answer = await ask(target, { headers: {} });
    assert.equal(answer.status, 303);
    assert.equal(answer.headers.get('location'), `/login?redirect=${encodeURIComponent(target)}`);
  }
});

test('only a path of this server follows a login', () => {
  assert.deepEqual(['/d/x?a=b', '//evil', '/\\evil', 'https://evil', '/a\r\nb', undefined].map(localPath), ['/d/x?a=b', '/', '/', '/', '/', '/']);
});

test('a login gives a cookie that opens pages, until the logout', async () => {
  const answer = await signIn(PASSWORD);
  assert.equal((await answer.json()).message, 'Logged in');
  const header = answer.headers.get('set-cookie');
  assert.match(header, /^grafana_session=\S+; Max-Age=43200; Path=\/; HttpOnly; SameSite=Lax$/);
  const headers = { Cookie: header.split(';')[0] };
  assert.equal((await ask('/', { headers })).status, 200);
  for (const forged of [`${headers.Cookie}x`, headers.Cookie.replace(/\.\d/, '.9'), 'grafana_session=a.9999999999999.b', 'grafana_session=']) {
    assert.equal((await ask('/api/search', { headers: { Cookie: forged } })).status, 401, forged);
  }
  assert.equal((await ask('/logout', { headers })).headers.get('location'), '/login');
  assert.equal((await ask('/api/search', { headers })).status, 401);
});

test('the form logs in too, and says what was wrong', async () => {
  const post = (fields) => fetch(`${viewer.url}/login`, { method: 'POST', redirect: 'manual', headers: client('10.0.0.1'), body: new URLSearchParams(fields) });
  const good = await post({ user: 'boss', password: PASSWORD, redirect: '/d/one' });
  assert.deepEqual([good.status, good.headers.get('location')], [303, '/d/one']);
  const bad = await post({ user: 'boss', password: 'no', redirect: '/d/one' });
  assert.equal(bad.status, 401);
  assert.equal(bad.headers.get('set-cookie'), null);
  assert.match(await bad.text(), /Invalid username or password/);
});

test('ten wrong passwords close the login to their address, for the right one too', async () => {
  const wrong = await Promise.all(Array.from({ length: 10 }, () => signIn('wrong', client('10.0.0.2'))));
  assert.deepEqual([...new Set(wrong.map(({ status }) => status))], [401]);
  const closed = await signIn(PASSWORD, client('10.0.0.2'));
  assert.equal(closed.status, 429);
  assert.ok(Number(closed.headers.get('retry-after')) > 200);
  assert.equal((await ask('/api/search', { headers: { ...basic('boss', PASSWORD), ...client('10.0.0.2') } })).status, 429);
  assert.equal((await signIn(PASSWORD, client('10.0.0.3'))).status, 200);
});

test('the login opens again, and a session ends by itself', async () => {
  let time = 1000;
  const sessions = createSessions({ GF_SECURITY_ADMIN_USER: 'boss', GF_SECURITY_ADMIN_PASSWORD: PASSWORD, GF_SECURITY_COOKIE_SECURE: true }, { now: () => time, delayMs: 0 });
  for (let tries = 0; tries < 10; tries += 1) await assert.rejects(sessions.check('boss', '', 'x'), { status: 401 });
  await assert.rejects(sessions.check('boss', PASSWORD, 'x'), { status: 429 });
  time += 300000;
  await sessions.check('boss', PASSWORD, 'x');
  await assert.rejects(sessions.check('Boss', PASSWORD, 'x'), { status: 401 });
  const cookie = sessions.begin()['Set-Cookie'];
  assert.match(cookie, /; Secure$/);
  const request = { req: { headers: { cookie: cookie.split(';')[0] } }, client: 'x' };
  assert.equal(await sessions.known(request), true);
  time += 12 * 3600 * 1000;
  assert.equal(await sessions.known(request), false);
});

test('dashboards and datasources as Grafana tells of them', async () => {
  const found = await (await ask('/api/search?type=dash-db')).json();
  assert.deepEqual(found.map(({ uid, title, type, folderTitle, url }) => [uid, title, type, folderTitle, url]), [['copy', 'Copy', 'dash-db', 'Shop', '/d/copy/copy'], ['one', 'One & <only>', 'dash-db', 'Shop', '/d/one/one-only']]);
  const one = await (await ask('/api/dashboards/uid/one')).json();
  assert.deepEqual(one.dashboard, { uid: 'one', title: 'One & <only>', panels: [] });
  assert.equal(one.meta.provisioned, true);
  assert.equal((await ask('/api/dashboards/uid/none')).status, 404);
  const sources = await (await ask('/api/datasources')).json();
  assert.deepEqual(sources.map(({ uid, isDefault }) => [uid, isDefault]), [['prometheus', true], ['alerts', false], ['gone', false], ['logs', false], ['jaeger', false]]);
  assert.match(await (await ask('/d/one/one-only')).text(), /<title>One &amp; &lt;only&gt; - Grafana viewer<\/title>/);
});

test('broken files are named on the list, in the log and where a dashboard is missing; the rest works', async () => {
  const page = await (await ask('/')).text();
  const missing = await (await ask('/d/torn')).text();
  for (const file of ['torn.json', 'same.json', 'bare.json', 'broken.yaml']) {
    for (const text of [page, missing, viewer.output()]) assert.ok(text.includes(file), file);
  }
  assert.match(page, /One &amp; &lt;only&gt;/);
  assert.match(page, /the dashboard has no uid and no title/);
  assert.match(page, /not Grafana/);
  assert.match(viewer.output(), /GF_USERS_ALLOW_SIGN_UP/);
  assert.ok(!viewer.output().includes(PASSWORD));
});

test('what the proxy lets through, it passes on as it is, without the login', async () => {
  seen.length = 0;
  assert.equal((await ask(`${PROXY}/query?query=up%7B%7D`)).status, 200);
  assert.equal((await ask(`${PROXY}/query_range`, { method: 'POST', body: new URLSearchParams({ query: 'a+b' }) })).status, 200);
  for (const name of ['series', 'labels', 'label/job/values']) assert.equal((await ask(`${PROXY}/${name}?match%5B%5D=up`)).status, 200, name);
  assert.deepEqual(seen.map(({ method, url }) => `${method} ${url}`), ['GET /api/v1/query?query=up%7B%7D', 'POST /api/v1/query_range', 'GET /api/v1/series?match%5B%5D=up', 'GET /api/v1/labels?match%5B%5D=up', 'GET /api/v1/label/job/values?match%5B%5D=up']);
  assert.equal(seen[1].body, 'query=a%2Bb');
  assert.ok(seen.every(({ headers }) => !headers.authorization && !headers.cookie));
});

test('nothing else of a datasource is reached', async () => {
  seen.length = 0;
  for (const name of ['admin/tsdb/delete_series', 'status/config', 'targets', 'write', 'query/../admin/tsdb/snapshot', 'query%2F..%2Fadmin', 'label/job', 'label/a%2Fb/values', 'label/..%2f..%2f..%2fconfig/values', 'alerts', 'metadata', '']) {
    for (const method of ['GET', 'POST']) assert.ok([400, 404, 405].includes((await ask(`${PROXY}/${name}`, { method })).status), name);
  }
  assert.equal((await ask(`${PROXY}/query`, { method: 'DELETE' })).status, 405);
  assert.equal((await ask(`${PROXY}/label/job/values`, { method: 'POST' })).status, 405);
  assert.equal((await ask(`${PROXY.replace('prometheus', 'none')}/query`)).status, 404);
  assert.equal((await ask(`${PROXY.replace('prometheus', 'alerts')}/query`)).status, 403);
  assert.deepEqual(seen, []);
});

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const LOGS = PROXY.replace('prometheus/api/v1', 'logs');
const JAEGER = PROXY.replace('prometheus/api/v1', 'jaeger');

test('of VictoriaLogs lines and counts are asked, of Jaeger a trace, and nothing else', async () => {
  seen.length = 0;
  assert.equal((await ask(`${LOGS}/select/logsql/query`, { method: 'POST', body: new URLSearchParams({ query: '*' }) })).status, 200);
  assert.equal((await ask(`${LOGS}/select/logsql/stats_query_range?query=x`)).status, 200);
  assert.equal((await ask(`${JAEGER}/api/traces/${TRACE}`)).status, 200);
  assert.deepEqual(seen.map(({ method, url }) => `${method} ${url}`), ['POST /select/logsql/query', 'GET /select/logsql/stats_query_range?query=x', `GET /api/traces/${TRACE}`]);
  seen.length = 0;
  for (const path of [`${LOGS}/select/logsql/tail`, `${LOGS}/delete/run_task`, `${LOGS}/insert/jsonline`, `${LOGS}/select/logsql/query/..`, `${LOGS}/api/v1/query`, `${JAEGER}/api/traces`, `${JAEGER}/api/services`, `${JAEGER}/api/traces/${TRACE}x`, `${JAEGER}/api/traces/..%2fservices`, `${PROXY.replace('/api/v1', '')}/select/logsql/query`]) {
    for (const method of ['GET', 'POST']) assert.ok([400, 403, 404, 405].includes((await ask(path, { method })).status), path);
  }
  assert.equal((await ask(`${JAEGER}/api/traces/${TRACE}`, { method: 'POST' })).status, 405);
  assert.deepEqual(seen, []);
});

test('the page of a trace wants a login, a datasource of traces and an id', async () => {
  const page = await ask(`/trace/jaeger/${TRACE}`);
  assert.match(await page.text(), /J&lt;ger.*data-trace|data-trace.*J&lt;ger/s);
  const status = async (path, options) => (await ask(path, options)).status;
  assert.equal(await status(`/trace/jaeger/${TRACE}`, { headers: {} }), 303);
  assert.deepEqual([await status(`/trace/prometheus/${TRACE}`), await status(`/trace/none/${TRACE}`), await status('/trace/jaeger/%3Cscript%3E')], [403, 404, 400]);
});

test('a datasource that refuses, hangs, redirects or is away', async () => {
  const refused = await ask(`${PROXY}/query?query=broken`);
  assert.deepEqual([refused.status, (await refused.json()).error], [400, 'parse error']);
  assert.equal((await ask(`${PROXY}/query?query=never`)).status, 504);
  assert.equal((await ask(`${PROXY}/query?query=elsewhere`)).status, 502);
  const away = await ask(`${PROXY.replace('prometheus', 'gone')}/query?query=up`);
  assert.deepEqual([away.status, (await away.json()).error], [502, 'datasource Gone is not available']);
});

test('files of the page are those of the list, and no others', async () => {
  for (const name of ['dashboard.js', 'trace.js', 'spans.js', 'style.css', 'uPlot.esm.js', 'uPlot.min.css', 'logo.svg']) assert.equal((await ask(`/public/${name}`, { headers: {} })).status, 200, name);
  for (const name of ['..%2Fapp.js', 'app.js', '%2e%2e%2fservice.js']) assert.equal((await ask(`/public/${name}`, { headers: {} })).status, 404, name);
});

test('SIGTERM drains and ends it', async () => {
  const other = await start({ GF_SECURITY_ADMIN_PASSWORD: PASSWORD });
  other.child.kill('SIGTERM');
  assert.equal(await other.exit, 0);
});
