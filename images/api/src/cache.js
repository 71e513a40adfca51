import { createClient } from '@redis/client';
import { traceCall } from './tracing.js';

const within = (ms, promise) => {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

/** Redis, by TLS alone, with a short time-out a command; commands fail at once while it is away, and the connection comes back by itself. */
export function createCache(settings, log) {
  let lost = false;
  const client = createClient({
    socket: {
      host: settings.REDIS_HOST, port: settings.REDIS_PORT, tls: true, connectTimeout: 2000,
      reconnectStrategy: (retries) => Math.min(50 * 2 ** Math.min(retries, 6), 1000),
    },
    password: settings.REDIS_PASSWORD,
    name: 'citadelbuy-api',
    disableOfflineQueue: true,
    pingInterval: 5000,
  });
  client.on('error', (error) => {
    if (!lost) log.warn('Redis is away', { error });
    lost = true;
  });
  client.on('ready', () => {
    log.info(lost ? 'Redis is back' : 'Redis is connected');
    lost = false;
  });

  const store = { 'db.system.name': 'redis', 'server.address': settings.REDIS_HOST, 'server.port': settings.REDIS_PORT };
  /** Run a command; its name is for the trace, which its keys are not. */
  const command = (name, run, ms = 500) => traceCall(() => [name, { ...store, 'db.operation.name': name }], () => {
    if (!client.isReady) return Promise.reject(new Error('not connected'));
    return within(ms, run(client));
  });
  return {
    command,
    connect() {
      client.connect().catch((error) => log.error('Redis connection given up', { error }));
    },
    check: () => command('PING', (redis) => redis.ping(), settings.READINESS_TIMEOUT_MS),
    close: () => client.destroy(),
  };
}
