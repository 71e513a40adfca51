// npm run migration:run: apply the files of migrations/ that the database does not have yet, in the order of their names.
import { createHash } from 'node:crypto';
import { readFile, readdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { migrationSettings } from './config.js';
import { connection, isUnavailable } from './database.js';
import { describe } from './service.js';

const FOLDER = fileURLToPath(new URL('../migrations/', import.meta.url));
// Any number will do, as long as every migration of this database uses the same.
const LOCK = 20250001;

async function connect(settings, say) {
  const until = Date.now() + settings.MIGRATION_WAIT_MS;
  for (;;) {
    const client = new pg.Client({ ...connection(settings), application_name: 'citadelbuy-migration', connectionTimeoutMillis: 5000 });
    client.on('error', () => {});
    try {
      await client.connect();
      const { rows: [{ standby }] } = await client.query('SELECT pg_is_in_recovery() AS standby');
      if (!standby) return client;
      throw Object.assign(new Error('the server is a read-only standby'), { code: '25006' });
    } catch (error) {
      await client.end().catch(() => {});
      if (!isUnavailable(error) || Date.now() >= until) {
        throw new Error(`no connection to PostgreSQL at ${settings.DATABASE_HOST}:${settings.DATABASE_PORT}: ${describe(error)}`);
      }
      say(`waiting for PostgreSQL at ${settings.DATABASE_HOST}:${settings.DATABASE_PORT}: ${describe(error)}`);
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
    }
  }
}

export async function migrate(settings, { folder = FOLDER, say = console.log } = {}) {
  const names = (await readdir(folder)).filter((name) => name.endsWith('.sql')).sort();
  const client = await connect(settings, say);
  try {
    // The lock belongs to this connection: it is released with it, however this process ends.
    const { rows: [{ free }] } = await client.query('SELECT pg_try_advisory_lock($1) AS free', [LOCK]);
    if (!free) {
      say('another migration is running, waiting for it');
      await client.query('SELECT pg_advisory_lock($1)', [LOCK]);
    }
    await client.query('CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())');
    const { rows } = await client.query('SELECT name, checksum FROM schema_migrations');
    const known = new Map(rows.map(({ name, checksum }) => [name, checksum]));
    const applied = [];
    for (const name of names) {
      const sql = await readFile(`${folder}/${name}`, 'utf8');
      const checksum = createHash('sha256').update(sql).digest('hex');
      if (known.has(name)) {
        if (known.get(name) !== checksum) throw new Error(`${name} was changed after it had been applied: restore it and put the change into a new file`);
        continue;
      }
      const started = Date.now();
      try {
        await client.query('BEGIN');
        await client.query(sql);
        await client.query('INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)', [name, checksum]);
        await client.query('COMMIT');
      } catch (error) {
        await client.query('ROLLBACK').catch(() => {});
        throw new Error(`${name} failed and was rolled back: ${describe(error)}`);
      }
      applied.push(name);
      say(`applied ${name} (${Date.now() - started} ms)`);
    }
    say(applied.length ? `${applied.length} migration(s) applied, ${names.length} in place` : `nothing to apply, ${names.length} migration(s) in place`);
    return applied;
  } finally {
    await client.end().catch(() => {});
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  // As the first process of a container, a signal without a handler would be ignored; an open transaction is rolled back by the server.
  for (const signal of ['SIGTERM', 'SIGINT']) {
    process.on(signal, () => {
      process.stderr.write(`migration stopped by ${signal}\n`);
      process.exit(1);
    });
  }
  try {
    await migrate(migrationSettings(process.env));
  } catch (error) {
    process.stderr.write(`migration failed: ${describe(error)}\n`);
    process.exit(1);
  }
}
