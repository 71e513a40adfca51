import { SERVICE_ENV, readEnv } from './service.js';

const DATABASE_ENV = {
  DATABASE_HOST: {},
  DATABASE_PORT: { number: true, default: 5432 },
  DATABASE_NAME: {},
  DATABASE_USER: {},
  DATABASE_PASSWORD: {},
};

const API_ENV = {
  ...SERVICE_ENV,
  ...DATABASE_ENV,
  DATABASE_POOL_MAX: { number: true, default: 10 },
  REDIS_HOST: {},
  REDIS_PORT: { number: true, default: 6379 },
  REDIS_PASSWORD: {},
  ELASTICSEARCH_URL: {},
  ELASTICSEARCH_USERNAME: { default: 'elastic' },
  ELASTICSEARCH_PASSWORD: {},
  JWT_SECRET: {},
  SESSION_SECRET: {},
  JWT_SECRET_ALSO_ACCEPTED: { optional: true },
  SESSION_SECRET_ALSO_ACCEPTED: { optional: true },
  RATE_LIMIT_TTL: { number: true, default: 60000 },
  RATE_LIMIT_MAX_REQUESTS: { number: true, default: 100 },
  RATE_LIMIT_PUBLIC_MAX: { number: true, default: 300 },
  RATE_LIMIT_SEARCH_MAX: { number: true, default: 200 },
  RATE_LIMIT_AUTH_MAX: { number: true, default: 10 },
  RATE_LIMIT_PAYMENT_MAX: { number: true, default: 20 },
  READINESS_TIMEOUT_MS: { number: true, default: 2000 },
  REINDEX_INTERVAL_MS: { number: true, default: 5000 },
};

export function apiSettings(env) {
  const settings = readEnv(API_ENV, env);
  let url;
  try {
    url = new URL(settings.ELASTICSEARCH_URL);
  } catch {
    url = undefined;
  }
  if (!/^https?:$/.test(url?.protocol ?? '')) throw new Error('environment variable ELASTICSEARCH_URL must be an http or https URL');
  return settings;
}

export function migrationSettings(env) {
  return readEnv({ ...DATABASE_ENV, MIGRATION_WAIT_MS: { number: true, default: 60000 } }, env);
}
