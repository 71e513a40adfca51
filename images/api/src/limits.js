import prom from 'prom-client';
import { HttpError } from './service.js';

// A fixed window: the first request of a client opens it, its end is the key's expiry. One script, so never a key without expiry.
const COUNT = `local n = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) left = tonumber(ARGV[1]) end
return {n, left}`;

// Who guesses passwords in numbers makes their hashing keep the pod from Redis' answers: it is waited for longer than for a cache.
const AUTH_PATIENCE_MS = 5000;
const MOST_HERE = 100000;

/** Counts of this pod alone, as long as Redis does not count: per key the same fixed window. */
export function createCounts(ttl, now = Date.now) {
  const windows = new Map(); // in the order in which they end
  return (key) => {
    for (const [name, { ends }] of windows) {
      if (ends > now() && windows.size < MOST_HERE) break;
      windows.delete(name);
    }
    const window = windows.get(key) ?? { count: 0, ends: now() + ttl };
    window.count += 1;
    windows.set(key, window);
    return [window.count, window.ends - now()];
  };
}

/** Which limit a request falls under. */
export function tierOf(method, path) {
  if (!path.startsWith('/api/')) return undefined;
  if (path.startsWith('/api/auth/')) return 'auth';
  if (/^\/api\/payments(\/|$)/.test(path)) return 'payment';
  if (/^\/api\/search(\/|$)/.test(path)) return 'search';
  if (/^\/api\/products(\/|$)/.test(path) && ['GET', 'HEAD'].includes(method)) return 'public';
  return 'api';
}

export function createLimits({ cache, settings, log, registry }) {
  const refused = new prom.Counter({ name: 'rate_limited_requests_total', help: 'Requests refused by a rate limit', labelNames: ['tier'], registers: [registry] });
  const limits = {
    public: settings.RATE_LIMIT_PUBLIC_MAX, api: settings.RATE_LIMIT_MAX_REQUESTS, search: settings.RATE_LIMIT_SEARCH_MAX,
    auth: settings.RATE_LIMIT_AUTH_MAX, payment: settings.RATE_LIMIT_PAYMENT_MAX,
  };
  const countHere = createCounts(settings.RATE_LIMIT_TTL);
  let alone = false;

  /** Count a request and throw a 429 beyond the limit; without Redis each pod counts its own. */
  return async function limit({ req, res, path, client, user }) {
    const tier = tierOf(req.method, path);
    if (!tier) return;
    const max = user ? Math.floor(limits[tier] * 1.5) : limits[tier];
    // Sign-in is counted by address always, else every account would be another ten guesses.
    const who = user && tier !== 'auth' ? `user:${user}` : `ip:${client}`;
    const key = `ratelimit:${tier}:${who}`;
    let count;
    let left;
    try {
      const run = (redis) => redis.eval(COUNT, { keys: [key], arguments: [String(settings.RATE_LIMIT_TTL)] });
      [count, left] = await cache.command('EVAL', run, tier === 'auth' ? AUTH_PATIENCE_MS : undefined);
      alone = false;
    } catch (error) {
      if (!alone) log.warn('Redis does not count requests, this pod does', { error });
      alone = true;
      [count, left] = countHere(key);
    }
    const seconds = Math.max(1, Math.ceil(left / 1000));
    res.setHeader('X-RateLimit-Limit', max);
    res.setHeader('X-RateLimit-Remaining', Math.max(0, max - count));
    res.setHeader('X-RateLimit-Reset', seconds);
    if (count > max) {
      refused.inc({ tier });
      throw new HttpError(429, 'too many requests', { fields: { tier, limit: max, retryAfter: seconds }, headers: { 'Retry-After': seconds } });
    }
  };
}
