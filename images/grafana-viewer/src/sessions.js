import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { HttpError } from './service.js';

const COOKIE = 'grafana_session';
const LIFETIME_MS = 12 * 3600 * 1000;
const WRONG_MAX = 10;
const WRONG_WINDOW_MS = 5 * 60 * 1000;
const WRONG_DELAY_MS = 1000;

const digest = (text) => createHash('sha256').update(String(text)).digest();
const same = (one, other) => timingSafeEqual(digest(one), digest(other));

/**
 * Logins of the one user: signed cookies that live in the client, for 12 hours or until the process ends.
 * A wrong password is answered after a second; ten of them from one address close the login to it for five minutes.
 */
export function createSessions(settings, { now = Date.now, delayMs = WRONG_DELAY_MS } = {}) {
  const key = randomBytes(32);
  const ended = new Map();
  const wrong = new Map();
  const sign = (text) => createHmac('sha256', key).update(text).digest('base64url');
  const attributes = `Path=/; HttpOnly; SameSite=Lax${settings.GF_SECURITY_COOKIE_SECURE ? '; Secure' : ''}`;

  function forget(map) {
    for (const [name, { until }] of map) if (until <= now()) map.delete(name);
  }

  /** Throws a 429 or, after a second, a 401. */
  async function check(user, password, client) {
    forget(wrong);
    const failures = wrong.get(client) ?? { count: 0, until: now() + WRONG_WINDOW_MS };
    if (failures.count >= WRONG_MAX) {
      const seconds = Math.ceil((failures.until - now()) / 1000);
      throw new HttpError(429, `too many wrong passwords; try again in ${seconds} s`, { headers: { 'Retry-After': seconds } });
    }
    const good = [same(user, settings.GF_SECURITY_ADMIN_USER), same(password, settings.GF_SECURITY_ADMIN_PASSWORD)];
    if (good.every(Boolean)) {
      wrong.delete(client);
      return;
    }
    failures.count += 1;
    wrong.set(client, failures);
    await new Promise((resolve) => { setTimeout(resolve, delayMs); });
    throw new HttpError(401, 'Invalid username or password');
  }

  function cookie(req) {
    const found = String(req.headers.cookie ?? '').split(';').map((part) => part.trim().split('=')).find(([name]) => name === COOKIE);
    const [id, expires, signature] = (found?.[1] ?? '').split('.');
    if (!signature || !same(signature, sign(`${id}.${expires}`)) || Number(expires) <= now() || ended.has(id)) return undefined;
    return { id, until: Number(expires) };
  }

  return {
    check,

    /** The header that gives a client its session. */
    begin() {
      const text = `${randomBytes(16).toString('base64url')}.${now() + LIFETIME_MS}`;
      return { 'Set-Cookie': `${COOKIE}=${text}.${sign(text)}; Max-Age=${LIFETIME_MS / 1000}; ${attributes}` };
    },

    /** End the session of a request; the header that removes its cookie. */
    end(req) {
      const session = cookie(req);
      forget(ended);
      if (session) ended.set(session.id, session);
      return { 'Set-Cookie': `${COOKIE}=; Max-Age=0; ${attributes}` };
    },

    /** Whether a request is logged in, by cookie or by basic authentication; a wrong password throws as `check` does. */
    async known({ req, client }) {
      if (cookie(req)) return true;
      const basic = /^Basic ([\w+/=-]+)$/i.exec(req.headers.authorization ?? '')?.[1];
      if (!basic) return false;
      const [user, ...password] = Buffer.from(basic, 'base64').toString('utf8').split(':');
      await check(user, password.join(':'), client);
      return true;
    },
  };
}
