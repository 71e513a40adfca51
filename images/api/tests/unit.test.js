import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import test from 'node:test';
import { checkPassword, createAuth, createToken, hashPassword, readToken } from '../src/auth.js';
import { apiSettings } from '../src/config.js';
import { createCounts, tierOf } from '../src/limits.js';
import { validId, validProduct } from '../src/products.js';
import { clientAddress, createLog } from '../src/service.js';

const FULL = {
  DATABASE_HOST: 'postgres', DATABASE_NAME: 'citadelbuy', DATABASE_USER: 'citadelbuy', DATABASE_PASSWORD: 'p', REDIS_HOST: 'redis', REDIS_PASSWORD: 'p',
  ELASTICSEARCH_URL: 'http://elasticsearch:9200', ELASTICSEARCH_PASSWORD: 'p', JWT_SECRET: 's', SESSION_SECRET: 's',
};

test('settings have the limits of the reference document by default', () => {
  const settings = apiSettings(FULL);
  assert.deepEqual(
    [settings.RATE_LIMIT_TTL, settings.RATE_LIMIT_PUBLIC_MAX, settings.RATE_LIMIT_MAX_REQUESTS, settings.RATE_LIMIT_SEARCH_MAX, settings.RATE_LIMIT_AUTH_MAX, settings.RATE_LIMIT_PAYMENT_MAX],
    [60000, 300, 100, 200, 10, 20],
  );
});

test('every missing variable is named, no value is shown', () => {
  const { DATABASE_PASSWORD, JWT_SECRET, ...rest } = FULL;
  assert.throws(() => apiSettings({ ...rest, JWT_SECRET: '' }), { message: 'environment variable DATABASE_PASSWORD, JWT_SECRET not set' });
});

test('a text where a number or a switch belongs is refused by name', () => {
  assert.throws(() => apiSettings({ ...FULL, REDIS_PORT: 'tcp://10.0.0.1:6379' }), /REDIS_PORT must be a whole number/);
  assert.throws(() => apiSettings({ ...FULL, TRUST_PROXY: 'yes' }), /TRUST_PROXY must be/);
  assert.throws(() => apiSettings({ ...FULL, ELASTICSEARCH_URL: 'elasticsearch:9200' }), /ELASTICSEARCH_URL must be an http or https URL/);
});

test('passwords are salted and checked', async () => {
  const [one, two] = await Promise.all([hashPassword('correct horse'), hashPassword('correct horse')]);
  assert.notEqual(one, two);
  assert.ok(await checkPassword('correct horse', one));
  assert.ok(!(await checkPassword('wrong horse', one)));
});

test('tokens are accepted unchanged, unexpired and with HS256 only', () => {
  const now = 1700000000000;
  const token = createToken('user-1', 'secret', now);
  assert.equal(readToken(token, 'secret', now), 'user-1');
  assert.equal(readToken(token, 'other', now), undefined);
  assert.equal(readToken(token, 'secret', now + 3600 * 1000), undefined);
  const [header, payload, signature] = token.split('.');
  const other = Buffer.from(JSON.stringify({ sub: 'user-2', exp: now })).toString('base64url');
  assert.equal(readToken(`${header}.${other}.${signature}`, 'secret', now), undefined);
  const none = Buffer.from('{"alg":"none"}').toString('base64url');
  assert.equal(readToken(`${none}.${payload}.`, 'secret', now), undefined);
  const signed = createHmac('sha256', 'secret').update(`${none}.${payload}`).digest('base64url');
  assert.equal(readToken(`${none}.${payload}.${signed}`, 'secret', now), undefined);
  for (const junk of ['', 'a', 'a.b', 'a.b.c', 'a.b.c.d', '..']) assert.equal(readToken(junk, 'secret', now), undefined, junk);
});

test('while a key is rotated, tokens of the old one and of the new one are accepted, and no others', () => {
  const user = (secret, extra) => createAuth({ settings: { JWT_SECRET: 'new', ...extra } })
    .user({ headers: { authorization: `Bearer ${createToken('user-1', secret)}` } });
  const during = { JWT_SECRET_ALSO_ACCEPTED: 'new\nold' };
  assert.deepEqual([user('new', during), user('old', during), user('older', during)], ['user-1', 'user-1', undefined]);
  assert.deepEqual([user('new'), user('old'), user('')], ['user-1', undefined, undefined]);
});

test('requests fall under the tiers of the reference document', () => {
  const cases = [
    ['GET', '/api/products', 'public'], ['GET', '/api/products/1', 'public'], ['HEAD', '/api/products/1', 'public'],
    ['POST', '/api/products', 'api'], ['DELETE', '/api/products/1', 'api'], ['GET', '/api/search', 'search'],
    ['POST', '/api/auth/login', 'auth'], ['POST', '/api/auth/register', 'auth'], ['POST', '/api/payments', 'payment'],
    ['GET', '/health/ready', undefined], ['GET', '/metrics', undefined],
  ];
  for (const [method, path, tier] of cases) assert.equal(tierOf(method, path), tier, `${method} ${path}`);
});

test('products are validated field by field', () => {
  assert.deepEqual(validProduct({ name: ' Lamp ', price: 19.99 }), { name: 'Lamp', description: '', price: 19.99 });
  for (const price of [0, 0.07, 1.1, 99999999.99]) assert.equal(validProduct({ name: 'a', price }).price, price);
  const bad = [{ price: 1 }, { name: ' ', price: 1 }, { name: 'x'.repeat(201), price: 1 }, { name: 'a' }, { name: 'a', price: '1' }, { name: 'a', price: -1 },
    { name: 'a', price: 1.001 }, { name: 'a', price: 1e8 }, { name: 'a', price: NaN }, { name: 'a\0', price: 1 }, { name: 'a', description: 1, price: 1 }];
  for (const body of bad) assert.throws(() => validProduct(body), { status: 400 }, JSON.stringify(body));
  assert.throws(() => validId("1' OR 1=1"), { status: 400 });
});

test('the client is the first forwarded address only where the proxy is trusted', () => {
  const req = { headers: { 'x-forwarded-for': '203.0.113.9, 10.0.0.1' }, socket: { remoteAddress: '::ffff:10.0.0.1' } };
  assert.equal(clientAddress(req, true), '203.0.113.9');
  assert.equal(clientAddress(req, false), '10.0.0.1');
  assert.equal(clientAddress({ headers: {}, socket: { remoteAddress: '10.0.0.1' } }, true), '10.0.0.1');
});

test('a log line is one JSON object', () => {
  const lines = [];
  createLog('api', (line) => lines.push(line)).warn('two\nlines', { requestId: 'r', error: Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }) });
  const { time, ...rest } = JSON.parse(lines[0]);
  assert.ok(time);
  assert.deepEqual(rest, { level: 'warn', name: 'api', msg: 'two\nlines', requestId: 'r', error: 'refused', code: 'ECONNREFUSED' });
  assert.equal(lines[0].split('\n').length, 2);
});

test('a pod that counts alone opens a window with the first request, and a new one when it has ended', () => {
  let now = 0;
  const count = createCounts(1000, () => now);
  assert.deepEqual([count('a'), count('a'), count('b')], [[1, 1000], [2, 1000], [1, 1000]]);
  now = 999;
  assert.deepEqual(count('a'), [3, 1]);
  now = 1000;
  assert.deepEqual([count('a'), count('b')], [[1, 1000], [1, 1000]]);
});
