import { createHmac, randomBytes, randomUUID, scrypt, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import { HttpError } from './service.js';

const derive = promisify(scrypt);
const TOKEN_SECONDS = 3600;
const HEADER = Buffer.from(JSON.stringify({ alg: 'HS256', typ: 'JWT' })).toString('base64url');

const same = (a, b) => a.length === b.length && timingSafeEqual(a, b);
const sign = (text, secret) => createHmac('sha256', secret).update(text).digest();

export function createToken(userId, secret, now = Date.now()) {
  const iat = Math.floor(now / 1000);
  const text = `${HEADER}.${Buffer.from(JSON.stringify({ sub: userId, iat, exp: iat + TOKEN_SECONDS })).toString('base64url')}`;
  return `${text}.${sign(text, secret).toString('base64url')}`;
}

/** The user id of a valid, unexpired HS256 token, else undefined. */
export function readToken(token, secret, now = Date.now()) {
  const [header, payload, signature, ...rest] = String(token).split('.');
  if (!signature || rest.length) return undefined;
  try {
    if (JSON.parse(Buffer.from(header, 'base64url')).alg !== 'HS256') return undefined;
    if (!same(Buffer.from(signature, 'base64url'), sign(`${header}.${payload}`, secret))) return undefined;
    const { sub, exp } = JSON.parse(Buffer.from(payload, 'base64url'));
    return typeof sub === 'string' && typeof exp === 'number' && exp * 1000 > now ? sub : undefined;
  } catch {
    return undefined;
  }
}

export async function hashPassword(password) {
  const salt = randomBytes(16);
  return `scrypt:${salt.toString('base64')}:${(await derive(password, salt, 32)).toString('base64')}`;
}

export async function checkPassword(password, stored) {
  const [, salt, hash] = stored.split(':').map((part) => Buffer.from(part, 'base64'));
  return same(await derive(password, salt, 32), hash);
}

function validAccount({ email, password }) {
  const errors = {};
  if (typeof email !== 'string' || email.length > 254 || !/^[^\s@\0]+@[^\s@\0]+$/.test(email)) errors.email = 'must be an e-mail address';
  if (typeof password !== 'string' || password.length < 8 || password.length > 200) errors.password = 'must be a text of 8 to 200 characters';
  if (Object.keys(errors).length) throw new HttpError(400, 'account is not valid', { fields: { errors } });
  return { email: email.toLowerCase(), password };
}

export function createAuth({ database, settings }) {
  const nobody = hashPassword(randomUUID());
  // During a rotation: the key that comes and the one that goes, one a line.
  const accepted = [settings.JWT_SECRET, ...(settings.JWT_SECRET_ALSO_ACCEPTED ?? '').split('\n').filter(Boolean)];
  return {
    async register(body) {
      const { email, password } = validAccount(body);
      const id = randomUUID();
      const hash = await hashPassword(password);
      // Repeated after a lost connection, the insert meets its own row, which has the same id.
      const { rows: [row] } = await database.query(
        `WITH added AS (INSERT INTO users (id, email, password_hash) VALUES ($1, $2, $3) ON CONFLICT (email) DO NOTHING RETURNING id)
         SELECT id FROM added UNION ALL SELECT id FROM users WHERE email = $2 LIMIT 1`,
        [id, email, hash],
      );
      if (row?.id !== id) throw new HttpError(409, 'this e-mail address has an account already');
      return { id, email, token: createToken(id, settings.JWT_SECRET) };
    },
    async login(body) {
      const { email, password } = validAccount(body);
      const { rows: [user] } = await database.query('SELECT id, password_hash FROM users WHERE email = $1', [email]);
      const right = await checkPassword(password, user?.password_hash ?? await nobody);
      if (!user || !right) throw new HttpError(401, 'e-mail address or password is wrong');
      return { token: createToken(user.id, settings.JWT_SECRET) };
    },
    /** The user that a request is made by, if its bearer token is valid. */
    user(req) {
      const [, token] = /^Bearer (\S+)$/i.exec(req.headers.authorization ?? '') ?? [];
      return token && accepted.map((secret) => readToken(token, secret)).find(Boolean);
    },
  };
}
