// Real stores for the tests: PostgreSQL and Redis processes of their own, on free ports, in a temporary folder.
import { execFile, execFileSync, spawn } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

export function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

export async function until(what, condition, ms = 15000) {
  const end = Date.now() + ms;
  let last;
  while (Date.now() < end) {
    try {
      const value = await condition();
      if (value) return value;
    } catch (error) {
      last = error;
    }
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
  throw new Error(`not within ${ms} ms: ${what}${last ? ` (${last.message})` : ''}`);
}

function program(name, folders) {
  const found = folders.map((folder) => join(folder, name)).find(existsSync);
  if (!found) throw new Error(`${name} not found: the tests need Debian's packages postgresql and redis-server`);
  return found;
}

/** A process that can be stopped and started again; Redis and PostgreSQL both end on SIGINT. */
function supervise(command, args, options, ready) {
  const store = { child: undefined };
  store.start = async () => {
    const output = [];
    store.child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    store.child.stdout.on('data', (chunk) => output.push(chunk));
    store.child.stderr.on('data', (chunk) => output.push(chunk));
    try {
      await until(`${command} is up`, ready);
    } catch (error) {
      throw new Error(`${error.message}\n${Buffer.concat(output)}`);
    }
  };
  store.stop = async (signal = 'SIGINT') => {
    if (!store.child || store.child.exitCode !== null || store.child.signalCode) return;
    const ended = new Promise((resolve) => { store.child.once('exit', resolve); });
    store.child.kill(signal);
    await ended;
  };
  return store;
}

/** A certificate of 127.0.0.1, which is its own authority. */
function certificate(folder) {
  const made = { certificate: join(folder, 'tls.crt'), key: join(folder, 'tls.key') };
  const words = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=store', '-addext', 'subjectAltName=IP:127.0.0.1'];
  execFileSync('openssl', [...words, '-out', made.certificate, '-keyout', made.key], { stdio: 'pipe' });
  for (const file of Object.values(made)) chmodSync(file, 0o644);
  return made;
}

export async function startStores() {
  const folder = mkdtempSync(join(tmpdir(), 'citadelbuy-api-'));
  const versions = existsSync('/usr/lib/postgresql') ? readdirSync('/usr/lib/postgresql') : [];
  const bin = versions.map((version) => `/usr/lib/postgresql/${version}/bin`);
  const path = process.env.PATH.split(':');
  const initdb = program('initdb', [...bin, ...path]);
  const server = program('postgres', [...bin, ...path]);
  const redisServer = program('redis-server', path);
  const redisCli = program('redis-cli', path);
  const psql = program('psql', path);

  // PostgreSQL refuses to run as root.
  const owner = process.getuid() === 0 ? { uid: 65534, gid: 65534 } : {};
  if (owner.uid) chownSync(folder, owner.uid, owner.gid);
  chmodSync(folder, 0o755);
  const password = 'test-password';
  const passwordFile = join(folder, 'password');
  writeFileSync(passwordFile, password, { mode: 0o644 });
  const data = join(folder, 'pgdata');
  execFileSync(initdb, ['-D', data, '-U', 'citadelbuy', '--auth=scram-sha-256', `--pwfile=${passwordFile}`, '--no-sync', '-E', 'UTF8', '--locale=C.UTF-8'], { ...owner, cwd: folder, stdio: 'pipe' });

  const [tls, redisSocket] = [certificate(folder), join(folder, 'redis.sock')];
  const [pgPort, redisPort, searchPort] = [await freePort(), await freePort(), await freePort()];
  const env = {
    PORT: '0', DATABASE_HOST: '127.0.0.1', DATABASE_PORT: `${pgPort}`, DATABASE_NAME: 'postgres', DATABASE_USER: 'citadelbuy', DATABASE_PASSWORD: password,
    REDIS_HOST: '127.0.0.1', REDIS_PORT: `${redisPort}`, REDIS_PASSWORD: password, NODE_EXTRA_CA_CERTS: tls.certificate,
    ELASTICSEARCH_URL: process.env.TEST_ELASTICSEARCH_URL || `http://127.0.0.1:${searchPort}`,
    ELASTICSEARCH_PASSWORD: process.env.TEST_ELASTICSEARCH_PASSWORD || 'none',
    JWT_SECRET: 'test-jwt-secret', SESSION_SECRET: 'test-session-secret', SHUTDOWN_DELAY_MS: '700', REINDEX_INTERVAL_MS: '300',
  };
  const sql = async (text) => (await run(psql, ['-h', '127.0.0.1', '-p', env.DATABASE_PORT, '-U', 'citadelbuy', '-d', 'postgres', '-Atc', text], { env: { ...process.env, PGPASSWORD: password } })).stdout.trim();
  const redis = async (...args) => (await run(redisCli, ['-s', redisSocket, ...args], { env: { ...process.env, REDISCLI_AUTH: password } })).stdout.trim();

  const postgresStore = supervise(server, ['-D', data, '-p', env.DATABASE_PORT, '-h', '127.0.0.1', '-k', folder, '-c', 'fsync=off'], { ...owner, cwd: folder }, () => sql('SELECT 1'));
  const redisStore = supervise(redisServer, ['--port', '0', '--tls-port', env.REDIS_PORT, '--tls-cert-file', tls.certificate, '--tls-key-file', tls.key, '--tls-auth-clients', 'no', '--unixsocket', redisSocket, '--bind', '127.0.0.1', '127.0.0.2', '--requirepass', password, '--save', '', '--dir', folder], { ...owner, cwd: folder }, async () => (await redis('ping')) === 'PONG');
  const stop = async () => {
    await Promise.all([postgresStore.stop(), redisStore.stop()]);
    rmSync(folder, { recursive: true, force: true });
  };
  try {
    await Promise.all([postgresStore.start(), redisStore.start()]);
  } catch (error) {
    await stop();
    throw error;
  }
  return { env, folder, sql, redis, postgres: postgresStore, redisServer: redisStore, stop };
}

/** Start src/main.js; { url, child, output(), stop() }. */
export async function startApi(env, main = new URL('../src/main.js', import.meta.url).pathname) {
  const child = spawn(process.execPath, [main], { env: { PATH: process.env.PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (chunk) => { output += chunk; });
  child.stderr.on('data', (chunk) => { output += chunk; });
  const exit = new Promise((resolve) => { child.once('exit', (code, signal) => resolve({ code, signal })); });
  const port = await until(`a listening process: ${output}`, () => {
    if (child.exitCode !== null) throw new Error(output);
    return /"listening","port":(\d+)/.exec(output)?.[1];
  });
  return {
    url: `http://127.0.0.1:${port}`, port: Number(port), child, exit, output: () => output,
    stop: async (signal = 'SIGTERM') => {
      child.kill(signal);
      return exit;
    },
  };
}

/** One request with a JSON body and answer. */
export async function ask(url, { method = 'GET', body, headers = {} } = {}) {
  const answer = await fetch(url, { method, headers: { ...(body !== undefined && { 'Content-Type': 'application/json' }), ...headers }, body: body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body) });
  const text = await answer.text();
  let json;
  try {
    json = JSON.parse(text);
  } catch { /* not JSON, text says what it is */ }
  return { status: answer.status, headers: answer.headers, text, json };
}
