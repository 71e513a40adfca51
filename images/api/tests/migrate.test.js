import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { chownSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import pg from 'pg';
import { migrationSettings } from '../src/config.js';
import { migrate } from '../src/migrate.js';
import { startStores, until } from './stores.js';

let stores;
const cwd = new URL('..', import.meta.url).pathname;

before(async () => { stores = await startStores(); });
after(() => stores?.stop());

function npmRun(env) {
  return new Promise((resolve) => {
    const child = spawn('npm', ['run', 'migration:run'], { cwd, env: { PATH: process.env.PATH, HOME: '/nonexistent', npm_config_cache: stores.folder, npm_config_logs_max: '0', ...env } });
    let output = '';
    child.stdout.on('data', (chunk) => { output += chunk; });
    child.stderr.on('data', (chunk) => { output += chunk; });
    child.on('exit', (code) => resolve({ code, output }));
  });
}

test('npm run migration:run started twice at once applies each migration once', async () => {
  const [one, two] = await Promise.all([npmRun(stores.env), npmRun(stores.env)]);
  assert.deepEqual([one.code, two.code], [0, 0], one.output + two.output);
  const output = one.output + two.output;
  assert.equal(output.match(/applied 0001_products.sql/g).length, 1, output);
  assert.equal(output.match(/nothing to apply, 2 migration\(s\) in place/g).length, 1, output);
  assert.equal(await stores.sql('SELECT string_agg(name, \',\' ORDER BY name) FROM schema_migrations'), '0001_products.sql,0002_accounts.sql');
});

test('two versions at once: the later one begins when the first is done, and an older one does not mind a newer', async () => {
  const [older, newer] = ['older', 'newer'].map((name) => mkdtempSync(join(tmpdir(), `citadelbuy-${name}-`)));
  const settings = migrationSettings(stores.env);
  const said = [];
  const start = (folder) => migrate(settings, { folder, say: (line) => said.push(`${folder === older ? 'older' : 'newer'}: ${line}`) });
  try {
    // The older one stands still in its second file until this transaction ends.
    const { DATABASE_HOST: host, DATABASE_PORT: port, DATABASE_USER: user, DATABASE_PASSWORD: password } = stores.env;
    const gate = new pg.Client({ host, port, user, password, database: 'postgres' });
    await gate.connect();
    await gate.query('CREATE TABLE held (id int)');
    await gate.query('BEGIN; LOCK TABLE held');
    for (const folder of [older, newer]) {
      writeFileSync(join(folder, '0010_first.sql'), 'CREATE TABLE steps (name text);');
      writeFileSync(join(folder, '0011_held.sql'), "LOCK TABLE held; INSERT INTO steps VALUES ('0011');");
    }
    writeFileSync(join(newer, '0012_newer.sql'), "INSERT INTO steps VALUES ('0012');");
    const one = start(older);
    await until('the older one is at its second file', () => said.some((line) => line.startsWith('older: applied 0010_first.sql')));
    const two = start(newer);
    await until('the newer one waits', () => said.includes('newer: another migration is running, waiting for it'));
    assert.equal(await stores.sql('SELECT count(*) FROM steps'), '0');
    await gate.query('COMMIT');
    await gate.end();
    assert.deepEqual(await one, ['0010_first.sql', '0011_held.sql']);
    assert.deepEqual(await two, ['0012_newer.sql']);
    assert.deepEqual(await start(older), []);
    assert.equal(await stores.sql("SELECT string_agg(name, ',') FROM steps"), '0011,0012');
    await stores.sql('DROP TABLE steps, held');
  } finally {
    for (const folder of [older, newer]) rmSync(folder, { recursive: true });
  }
});

test('a failing migration is rolled back whole and named; a changed one is refused; the rest is kept', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'citadelbuy-migrations-'));
  const settings = migrationSettings(stores.env);
  const options = { folder, say: () => {} };
  try {
    writeFileSync(join(folder, '0003_good.sql'), 'CREATE TABLE good (id int);');
    writeFileSync(join(folder, '0004_bad.sql'), 'CREATE TABLE half (id int); SELECT 1/0;');
    await assert.rejects(migrate(settings, options), /0004_bad.sql failed and was rolled back: division by zero/);
    assert.equal(await stores.sql("SELECT to_regclass('good') IS NOT NULL, to_regclass('half') IS NULL"), 't|t');
    writeFileSync(join(folder, '0003_good.sql'), 'CREATE TABLE good (id bigint);');
    await assert.rejects(migrate(settings, options), /0003_good.sql was changed after it had been applied/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('missing variables and a wrong password end it at once with one clear line', async () => {
  const missing = await npmRun({});
  assert.notEqual(missing.code, 0);
  assert.match(missing.output, /migration failed: environment variable DATABASE_HOST, DATABASE_NAME, DATABASE_USER, DATABASE_PASSWORD not set/);
  const wrong = await npmRun({ ...stores.env, DATABASE_PASSWORD: 'wrong' });
  assert.notEqual(wrong.code, 0);
  assert.match(wrong.output, /migration failed: no connection to PostgreSQL at 127.0.0.1:\d+: password authentication failed/);
});

test('it waits for a server that is not there yet', async () => {
  await stores.postgres.stop();
  const lines = [];
  const running = migrate(migrationSettings(stores.env), { say: (line) => lines.push(line) });
  await new Promise((resolve) => { setTimeout(resolve, 1200); });
  await stores.postgres.start();
  assert.deepEqual(await running, []);
  assert.match(lines[0], /waiting for PostgreSQL/);
});

test('a server that lets nobody in without TLS is known by its authority and its name', async () => {
  const { folder, sql } = stores;
  const file = (name) => join(folder, name);
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '1'];
  for (const name of ['authority', 'other']) {
    execFileSync('openssl', ['req', '-x509', ...key, '-subj', `/CN=${name}`, '-keyout', file(`${name}.key`), '-out', file(`${name}.crt`)], { stdio: 'pipe' });
  }
  execFileSync('openssl', ['req', ...key.slice(0, 5), '-subj', '/CN=postgres', '-keyout', file('tls.key'), '-out', file('tls.csr')], { stdio: 'pipe' });
  const certify = (name) => {
    writeFileSync(file('names'), `subjectAltName=DNS:${name}`);
    execFileSync('openssl', ['x509', '-req', '-days', '1', '-in', file('tls.csr'), '-CA', file('authority.crt'), '-CAkey', file('authority.key'), '-CAcreateserial', '-extfile', file('names'), '-out', file('tls.crt')], { stdio: 'pipe' });
  };
  certify('localhost');
  const { uid, gid } = statSync(file('pgdata'));
  chownSync(file('tls.key'), uid, gid);
  await sql(`ALTER SYSTEM SET ssl_cert_file = '${file('tls.crt')}'`);
  await sql(`ALTER SYSTEM SET ssl_key_file = '${file('tls.key')}'`);
  await sql('ALTER SYSTEM SET ssl = on');
  writeFileSync(file('pgdata/pg_hba.conf'), 'hostssl all all all scram-sha-256\n');
  await sql('SELECT pg_reload_conf()');

  const plain = { ...stores.env, DATABASE_HOST: 'localhost' };
  const right = { ...plain, PGSSLMODE: 'verify-full', NODE_EXTRA_CA_CERTS: file('authority.crt') };
  const attempt = async (env) => {
    const { code, output } = await npmRun(env);
    return code ? output : 'let in';
  };
  assert.match(await attempt(plain), /no pg_hba.conf entry for host .* no encryption/);
  assert.match(await attempt({ ...right, NODE_EXTRA_CA_CERTS: file('other.crt') }), /unable to verify|certificate/);
  assert.equal(await attempt(right), 'let in');
  certify('elsewhere');
  await sql('SELECT pg_reload_conf()');
  assert.match(await attempt(right), /does not match certificate's altnames/);
});
