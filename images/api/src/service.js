// HTTP service frame: routes, JSON logs, request ids, metrics, traces, draining. The same file in api/ and web/ (a test compares them).
import { randomUUID } from 'node:crypto';
import http from 'node:http';
import prom from 'prom-client';
import { endRequest, inRequest, startTracing, traceError, traceFields, traceRequest } from './tracing.js';

const BODY_LIMIT = 100 * 1024;
const QUIET_MS = 250;
const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** An error with an HTTP status; its message and fields are shown to the client. */
export class HttpError extends Error {
  constructor(status, message, { fields = {}, headers = {} } = {}) {
    super(message);
    this.status = status;
    this.fields = fields;
    this.headers = headers;
  }
}

/** A logger that writes one JSON object a line. */
export function createLog(name, write = (line) => process.stdout.write(line)) {
  const at = (level) => (msg, fields = {}) => {
    const { error, ...rest } = fields;
    const shown = error instanceof Error ? { error: describe(error), ...(error.code && { code: error.code }) } : error && { error };
    write(`${JSON.stringify({ time: new Date().toISOString(), level, name, msg, ...rest, ...shown, ...traceFields() })}\n`);
  };
  return { info: at('info'), warn: at('warn'), error: at('error') };
}

/** A connection refused on several addresses is an AggregateError without a message of its own. */
export function describe(error) {
  return error.message || error.errors?.map((one) => one.message).join('; ') || error.code || String(error);
}

/** Read settings from the environment; throws one error that names every missing or wrong variable. */
export function readEnv(spec, env = process.env) {
  const values = {};
  const missing = [];
  const wrong = [];
  for (const [name, { number = false, optional = false, default: fallback }] of Object.entries(spec)) {
    const text = env[name];
    if (text === undefined || text === '') {
      if (fallback === undefined && !optional) missing.push(name);
      values[name] = fallback;
    } else if (number) {
      if (!/^\d{1,9}$/.test(text)) wrong.push(name);
      values[name] = Number(text);
    } else if (typeof fallback === 'boolean') {
      if (!['true', 'false'].includes(text)) wrong.push(name);
      values[name] = text === 'true';
    } else {
      values[name] = text;
    }
  }
  const problems = [];
  if (missing.length) problems.push(`environment variable ${missing.join(', ')} not set`);
  if (wrong.length) problems.push(`environment variable ${wrong.join(', ')} must be a whole number, or true or false where it is a switch`);
  if (problems.length) throw new Error(problems.join('; '));
  return values;
}

/** Settings of the frame itself. */
export const SERVICE_ENV = {
  PORT: { number: true, default: 3000 },
  SHUTDOWN_DELAY_MS: { number: true, default: 3000 },
  SHUTDOWN_TIMEOUT_MS: { number: true, default: 10000 },
  TRUST_PROXY: { default: false },
};

/** The whole body of a request, at most BODY_LIMIT bytes. */
export function readBody(req) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    let size = 0;
    const tooLarge = () => reject(new HttpError(413, `body is larger than ${BODY_LIMIT} bytes`));
    if (Number(req.headers['content-length']) > BODY_LIMIT) {
      tooLarge();
      return;
    }
    req.on('data', (chunk) => {
      size += chunk.length;
      if (size <= BODY_LIMIT) chunks.push(chunk);
      else tooLarge();
    });
    req.on('end', () => resolve(Buffer.concat(chunks).toString('utf8')));
    req.on('error', reject);
    req.on('close', () => reject(new HttpError(400, 'body ended early')));
  });
}

/** Let the rest of a body go by, for half a second at most. */
async function skipBody(req) {
  if (req.complete || req.destroyed) return;
  let timer;
  const late = new Promise((resolve) => { timer = setTimeout(resolve, 500); });
  const over = new Promise((resolve) => { req.once('end', resolve).once('close', resolve); });
  req.resume();
  await Promise.race([over, late]);
  clearTimeout(timer);
}

/** The body as a JSON object, or a 400. */
export async function readJson(req) {
  let value;
  try {
    value = JSON.parse(await readBody(req));
  } catch (error) {
    if (error instanceof HttpError) throw error;
    throw new HttpError(400, 'body is not valid JSON');
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new HttpError(400, 'body must be a JSON object');
  return value;
}

/** Address of the client: the first of X-Forwarded-For where the proxy in front is trusted, else the peer's. */
export function clientAddress(req, trustProxy) {
  const forwarded = trustProxy && String(req.headers['x-forwarded-for'] ?? '').split(',')[0].trim();
  return (forwarded || req.socket.remoteAddress || 'unknown').replace(/^::ffff:/, '').slice(0, 64);
}

function compile(routes) {
  return routes.map((route) => {
    const names = [];
    const source = route.path.replace(/[.]/g, '\\.').replace(/\*$/, '.*').replace(/:(\w+)/g, (_, name) => {
      names.push(name);
      return '([^/]+)';
    });
    return { ...route, names, pattern: new RegExp(`^${source}$`) };
  });
}

/**
 * A service that answers `routes` ([{ method, path, handler, quiet }], `*` as method for any).
 * A handler gets a context ({ req, res, url, params, requestId, client, log, send }) and answers through `send` or `res`.
 * `before(context)` runs ahead of each handler; `onError(error, context)` may translate an error into an HttpError.
 */
export function createService({ routes, log, settings, registry = new prom.Registry(), before, onError, errorPage }) {
  const table = compile([
    ...routes,
    {
      method: 'GET', path: '/metrics', quiet: true,
      handler: async ({ res }) => {
        const text = await registry.metrics();
        res.writeHead(200, { 'Content-Type': registry.contentType }).end(text);
      },
    },
  ]);
  prom.collectDefaultMetrics({ register: registry });
  const duration = new prom.Histogram({
    name: 'http_request_duration_seconds', help: 'Time to answer a request, in seconds',
    labelNames: ['method', 'route', 'status'], registers: [registry],
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
  });
  const sockets = new Set();
  let lastRequest = 0;
  new prom.Gauge({
    name: 'http_active_connections', help: 'Open client connections', registers: [registry],
    collect() { this.set(sockets.size); },
  });
  const inFlight = new prom.Gauge({ name: 'http_requests_in_flight', help: 'Requests being answered', registers: [registry] });

  const service = { draining: false, closing: false, registry, port: undefined };

  function find(method, path) {
    const here = table.filter((route) => route.pattern.test(path));
    const route = here.find((one) => one.method === '*' || one.method === method || (method === 'HEAD' && one.method === 'GET'));
    if (route) {
      const [, ...values] = route.pattern.exec(path);
      try {
        return { route, params: Object.fromEntries(route.names.map((name, i) => [name, decodeURIComponent(values[i])])) };
      } catch {
        throw new HttpError(400, 'path is not valid percent-encoding');
      }
    }
    if (!here.length) throw new HttpError(404, 'not found');
    throw new HttpError(405, 'method not allowed', { headers: { Allow: [...new Set(here.map((one) => one.method))].join(', ') } });
  }

  function answer(req, res) {
    const given = req.headers['x-request-id'];
    const requestId = /^[\w.:-]{1,128}$/.test(given ?? '') ? given : randomUUID();
    const path = req.url.split('?', 1)[0];
    const context = {
      req, res, requestId, path, params: {}, route: 'unmatched', quiet: false, client: clientAddress(req, settings.TRUST_PROXY), started: process.hrtime.bigint(),
      send(status, body, headers = {}) {
        const text = JSON.stringify(body);
        res.writeHead(status, { 'Content-Type': 'application/json; charset=utf-8', 'Content-Length': Buffer.byteLength(text), ...headers });
        res.end(text);
      },
    };
    res.setHeader('X-Request-Id', requestId);
    // From SIGTERM on every answer ends its connection, so that clients move to another pod before this one stops listening.
    if (service.draining) res.setHeader('Connection', 'close');
    inFlight.inc();
    try {
      try {
        context.url = new URL(req.url, 'http://localhost');
      } catch {
        throw new HttpError(400, 'target of the request is not a valid path');
      }
      const { route, params } = find(req.method, path);
      Object.assign(context, { route: route.path, quiet: Boolean(route.quiet), params, handler: route.handler });
    } catch (refusal) {
      context.refusal = refusal;
    }
    if (context.quiet) serve(context);
    else traceRequest(context, () => serve(context));
  }

  async function serve(context) {
    context.res.on('close', inRequest(() => finish(context)));
    try {
      if (context.refusal) throw context.refusal;
      await before?.(context);
      await context.handler(context);
    } catch (cause) {
      await fail(cause, context);
    }
  }

  function finish({ req: { method }, res, requestId, path, route, quiet, client, started }) {
    inFlight.dec();
    const seconds = Number(process.hrtime.bigint() - started) / 1e9;
    const status = res.headersSent ? res.statusCode : 499;
    duration.observe({ method, route, status }, seconds);
    if (!quiet || status >= 500) log.info('request', { requestId, method, path, route, status, ms: Math.round(seconds * 1e4) / 10, client });
    endRequest(status);
    if (service.closing) setImmediate(() => server.closeIdleConnections());
  }

  async function fail(cause, context) {
    const error = cause instanceof HttpError ? cause : onError?.(cause, context) ?? new HttpError(500, 'internal error');
    if (error.status >= 500) {
      log.error('request failed', { requestId: context.requestId, route: context.route, error: cause });
      traceError(cause);
    }
    const { req, res } = context;
    if (res.headersSent || res.destroyed) {
      res.destroy();
      return;
    }
    // Closing while the client still sends would lose the answer; a body too long to wait for ends the connection.
    await skipBody(req);
    if (!req.complete) res.setHeader('Connection', 'close');
    if (errorPage?.(error, context)) return;
    context.send(error.status, { error: error.message, status: error.status, requestId: context.requestId, ...error.fields }, error.headers);
  }

  const server = http.createServer({ keepAliveTimeout: 15000, headersTimeout: 10000, requestTimeout: 30000 }, (req, res) => {
    req.on('error', () => {});
    lastRequest = Date.now();
    answer(req, res);
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });

  service.listen = () => new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(settings.PORT, '0.0.0.0', () => {
      service.port = server.address().port;
      log.info('listening', { port: service.port });
      resolve(service);
    });
  });

  /** Be not ready at once, go on serving for the delay (endpoints need a moment to forget this pod), then finish what was accepted. */
  service.stop = async (reason) => {
    if (service.draining) return false;
    service.draining = true;
    log.info('draining', { reason, delayMs: settings.SHUTDOWN_DELAY_MS });
    await sleep(settings.SHUTDOWN_DELAY_MS);
    // Closing the listener resets connections that wait to be accepted, so as long as new requests come the end waits, once more the delay at most.
    for (const end = Date.now() + settings.SHUTDOWN_DELAY_MS; Date.now() - lastRequest < QUIET_MS && Date.now() < end;) await sleep(50);
    service.closing = true;
    const closed = new Promise((resolve) => { server.close(() => resolve(true)); });
    server.closeIdleConnections();
    // A connection that never sent a byte is not idle in Node's count and would hold the process up.
    setTimeout(() => sockets.forEach((socket) => { if (!socket.bytesRead) socket.destroy(); }), 200).unref();
    let timer;
    const late = new Promise((resolve) => { timer = setTimeout(() => resolve(false), settings.SHUTDOWN_TIMEOUT_MS); });
    const clean = await Promise.race([closed, late]);
    clearTimeout(timer);
    if (!clean) {
      log.error('requests were still running at the end of SHUTDOWN_TIMEOUT_MS and are cut off', { connections: sockets.size });
      server.closeAllConnections();
    }
    return clean;
  };
  return service;
}

/** Run `start()` as a process: one clear line and exit 1 when it cannot start; SIGTERM drains, then `release()` and the last spans, then exit 0. */
export async function run(name, start) {
  const log = createLog(name);
  const stopping = new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => resolve(signal));
  });
  process.on('unhandledRejection', (error) => log.error('unhandled rejection', { error }));
  let started;
  let stopTracing;
  try {
    stopTracing = await startTracing(name, log);
    started = await start(log);
    await started.service.listen();
  } catch (error) {
    process.stderr.write(`${name}: cannot start: ${describe(error)}\n`);
    process.exit(1);
  }
  const clean = await started.service.stop(await stopping);
  await Promise.race([Promise.allSettled([started.release?.(), stopTracing()]), sleep(3000)]);
  log.info('stopped', { clean });
  process.exit(clean ? 0 : 1);
}
