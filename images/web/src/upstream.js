import http from 'node:http';
import { pipeline } from 'node:stream';
import { HttpError } from './service.js';
import { traceCall, traceHeaders, traceStatus } from './tracing.js';

const HOP_BY_HOP = new Set(['connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'host', 'expect']);

/** The way to the API: `forward` streams a whole request there and back, `get` reads one JSON answer for a page. */
export function createUpstream(settings, log) {
  const base = new URL(settings.API_URL);
  // Idle connections are given up well before the API would close them.
  const agent = new http.Agent({ keepAlive: true, maxSockets: 100, timeout: 5000 });

  function forwardedFor(context) {
    const given = settings.TRUST_PROXY && context.req.headers['x-forwarded-for'];
    const peer = (context.req.socket.remoteAddress ?? '').replace(/^::ffff:/, '');
    return given ? `${given}, ${peer}` : peer;
  }

  function kept(headers) {
    const named = String(headers.connection ?? '').toLowerCase().split(',').map((name) => name.trim());
    return Object.fromEntries(Object.entries(headers).filter(([name]) => !HOP_BY_HOP.has(name) && !named.includes(name)));
  }

  /** Start a request; `send(request)` gives it its body, and does so again when the first one met a connection just closed. */
  function open({ method, path, headers, hasBody, send, onResponse, onError }) {
    const call = {};
    const repeatable = !hasBody && ['GET', 'HEAD'].includes(method);
    const start = (fresh) => {
      // What cannot be repeated never goes out on a kept connection: the API may just be closing it.
      const req = http.request({
        hostname: base.hostname, port: base.port || 80, method, path: base.pathname.replace(/\/$/, '') + path, headers,
        agent: !fresh && repeatable ? agent : false,
      });
      call.request = req;
      const timer = setTimeout(() => req.destroy(Object.assign(new Error(`no answer within ${settings.API_TIMEOUT_MS} ms`), { code: 'ETIMEDOUT' })), settings.API_TIMEOUT_MS);
      req.on('response', (res) => {
        clearTimeout(timer);
        onResponse(res);
      });
      req.on('close', () => clearTimeout(timer));
      req.on('error', (error) => {
        if (!fresh && req.reusedSocket && ['ECONNRESET', 'EPIPE'].includes(error.code) && !req.res) start(true);
        else onError(error);
      });
      send(req);
    };
    start(false);
    return call;
  }

  const server = { 'server.address': base.hostname, 'server.port': Number(base.port) || 80 };
  /** Do one call of the API for a request; what ends it is a refusal for the client. */
  async function call({ requestId }, method, work) {
    try {
      return await traceCall(() => [method, { ...server, 'http.request.method': method }], work);
    } catch (error) {
      if (error instanceof HttpError) throw error;
      log.warn('the API is not available', { requestId, error });
      throw error.code === 'ETIMEDOUT'
        ? new HttpError(504, 'the API did not answer in time')
        : new HttpError(502, 'the API is not available', { headers: { 'Retry-After': 1 } });
    }
  }

  function forward(context) {
    const { req, res, requestId } = context;
    return call(context, req.method, (span) => new Promise((resolve, reject) => {
      const hasBody = req.headers['content-length'] > 0 || 'transfer-encoding' in req.headers;
      const headers = {
        ...kept(req.headers), host: base.host, 'x-request-id': requestId, 'x-forwarded-for': forwardedFor(context),
        ...(req.headers.host && { 'x-forwarded-host': req.headers.host }), ...traceHeaders(),
      };
      const sent = open({
        method: req.method, path: req.url, headers, hasBody,
        send: (request) => { if (hasBody) req.pipe(request); else request.end(); },
        onResponse: (answer) => {
          traceStatus(span, answer.statusCode);
          res.writeHead(answer.statusCode, { ...kept(answer.headers), 'x-request-id': requestId });
          pipeline(answer, res, (error) => {
            if (error) res.destroy();
            resolve();
          });
        },
        onError: reject,
      });
      res.on('close', () => { if (!res.writableFinished) sent.request.destroy(); });
    }));
  }

  function get(context, path, { method = 'GET', body } = {}) {
    const text = body && JSON.stringify(body);
    return call(context, method, (span) => new Promise((resolve, reject) => {
      const headers = {
        host: base.host, accept: 'application/json', 'x-request-id': context.requestId, 'x-forwarded-for': forwardedFor(context),
        ...(text && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }), ...traceHeaders(),
      };
      open({
        method, path, headers, hasBody: Boolean(text),
        send: (request) => request.end(text),
        onResponse: (answer) => {
          traceStatus(span, answer.statusCode);
          const chunks = [];
          answer.on('data', (chunk) => chunks.push(chunk));
          answer.on('error', reject);
          answer.on('end', () => {
            try {
              const json = JSON.parse(Buffer.concat(chunks).toString('utf8') || '{}');
              resolve({ status: answer.statusCode, json, headers: answer.headers });
            } catch {
              reject(new HttpError(502, 'the API gave an answer that is not JSON'));
            }
          });
        },
        onError: reject,
      });
    }));
  }

  return { forward, get, close: () => agent.destroy() };
}
