import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import { migrationSettings } from '../src/config.js';
import { migrate } from '../src/migrate.js';
import { startStores } from './stores.js';

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
