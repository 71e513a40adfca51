import pg from 'pg';
import { traceCall } from './tracing.js';

// Connection lost, server starting or stopping, or a former primary that is now read-only: another try on a new connection may work.
const RETRIABLE = new Set(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENOTFOUND', 'EAI_AGAIN',
  '57P01', '57P02', '57P03', '25006', '08000', '08001', '08003', '08004', '08006', '53300']);
const RETRY_AFTER_MS = [100, 400, 1000];

// What a statement does first, for the trace.
const OPERATION = /\b(INSERT INTO|UPDATE|DELETE FROM|SELECT\b.*?\bFROM)\s+(\w+)/s;

export function isUnavailable(error) {
  return RETRIABLE.has(error.code) || RETRIABLE.has(error.errors?.[0]?.code)
    || /Connection terminated|timeout exceeded when trying to connect|timeout expired|Query read timeout|connection error/i.test(error.message);
}

/** Connection settings of the pg library from ours. */
export function connection(settings) {
  return {
    host: settings.DATABASE_HOST,
    port: settings.DATABASE_PORT,
    database: settings.DATABASE_NAME,
    user: settings.DATABASE_USER,
    password: settings.DATABASE_PASSWORD,
    application_name: 'citadelbuy-api',
    keepAlive: true,
    keepAliveInitialDelayMillis: 5000,
  };
}

export function createDatabase(settings, log) {
  const failed = (error) => log.warn('idle PostgreSQL connection lost', { error });
  // query_timeout is the client's own clock: it also ends a query whose server vanished from the network.
  const pool = new pg.Pool({ ...connection(settings), max: settings.DATABASE_POOL_MAX, connectionTimeoutMillis: 3000, idleTimeoutMillis: 30000, query_timeout: 5000, statement_timeout: 5000 });
  // The probe has a connection of its own: a busy pool is no reason to be taken out of service.
  const probe = new pg.Pool({
    ...connection(settings), max: 1, idleTimeoutMillis: 30000,
    connectionTimeoutMillis: settings.READINESS_TIMEOUT_MS, query_timeout: settings.READINESS_TIMEOUT_MS,
  });
  pool.on('error', failed);
  probe.on('error', failed);

  const store = { 'db.system.name': 'postgresql', 'db.namespace': settings.DATABASE_NAME, 'server.address': settings.DATABASE_HOST, 'server.port': settings.DATABASE_PORT };
  /** A statement in the trace. Its text is there, its values are not: so a statement has all of them as parameters. */
  function spanOf(text) {
    const [, verb, table] = OPERATION.exec(text) ?? [];
    const operation = verb?.split(' ', 1)[0];
    return [operation ? `${operation} ${table}` : 'postgresql', { ...store, 'db.operation.name': operation, 'db.collection.name': table, 'db.query.text': text }];
  }

  /** Run one statement, again on a new connection when the old one broke: so only statements that may run twice. */
  async function query(text, values) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await traceCall(() => spanOf(text), () => pool.query(text, values));
      } catch (error) {
        if (!isUnavailable(error) || attempt >= RETRY_AFTER_MS.length) throw error;
        await new Promise((resolve) => { setTimeout(resolve, RETRY_AFTER_MS[attempt]); });
      }
    }
  }

  /** Throws unless the database takes writes and has been migrated. */
  async function check() {
    const { rows: [row] } = await probe.query("SELECT pg_is_in_recovery() AS standby, to_regclass('products') IS NOT NULL AS migrated");
    if (row.standby) throw new Error('the server is a read-only standby');
    if (!row.migrated) throw new Error('table products is missing: run npm run migration:run');
  }

  return { query, check, close: () => Promise.all([pool.end(), probe.end()]) };
}
