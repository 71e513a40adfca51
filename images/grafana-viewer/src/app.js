import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import prom from 'prom-client';
import { dashboardPage, listPage, loginPage, problemPage, tracePage } from './pages.js';
import { createCatalogue, slug } from './provisioning.js';
import { HttpError, createService, readBody, readJson } from './service.js';
import { createSessions } from './sessions.js';

const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const TYPES = { css: 'text/css; charset=utf-8', js: 'text/javascript; charset=utf-8', svg: 'image/svg+xml' };
const PROXY = '/api/datasources/proxy/uid/:uid';
// What is asked of a datasource, by its type. Nothing else of it is reached through here.
const ASKED = {
  prometheus: ['query', 'query_range', 'series', 'labels', 'label/:label/values'].map((name) => `/api/v1/${name}`),
  'victoriametrics-logs-datasource': ['query', 'stats_query_range'].map((name) => `/select/logsql/${name}`),
  jaeger: ['/api/traces/:trace'],
};
const PARTS = { label: /^[a-zA-Z_]\w*$/, trace: /^[0-9a-f]{32}$/ };

function readAssets() {
  const own = ['dashboard.js', 'draw.js', 'logo.svg', 'panels.js', 'query.js', 'spans.js', 'style.css', 'trace.js', 'units.js', 'values.js', 'variables.js'];
  const files = [...own.map((name) => [name, `public/${name}`]), ...['uPlot.esm.js', 'uPlot.min.css'].map((name) => [name, `../node_modules/uplot/dist/${name}`])];
  return new Map(files.map(([name, file]) => [name, readFileSync(new URL(file, import.meta.url))]));
}

/** Where to go after the login: a path of this server, never another one. */
export const localPath = (text) => (/^\/(?![/\\])[\x21-\x7e]*$/.test(text ?? '') ? text : '/');

/** The viewer's service: { service, release }. */
export function createApp(settings, log) {
  const catalogue = createCatalogue(settings.GF_PATHS_PROVISIONING, log);
  const sessions = createSessions(settings);
  const assets = readAssets();
  const registry = new prom.Registry();
  if (settings.ignored.length) log.info('settings of Grafana that the viewer has no use for', { names: settings.ignored });
  new prom.Gauge({ name: 'grafana_viewer_build_info', help: 'Always 1', labelNames: ['version'], registers: [registry] }).set({ version }, 1);
  new prom.Gauge({
    name: 'grafana_viewer_dashboards', help: 'Provisioned dashboards', registers: [registry],
    collect() { this.set(catalogue().dashboards.size); },
  });
  new prom.Gauge({
    name: 'grafana_viewer_provisioning_problems', help: 'Provisioning files and dashboards that are left out', registers: [registry],
    collect() { this.set(catalogue().problems.length); },
  });

  function show({ res }, status, html, headers = {}) {
    res.writeHead(status, {
      'Content-Type': 'text/html; charset=utf-8', 'Content-Length': Buffer.byteLength(html), 'Cache-Control': 'no-store',
      'Content-Security-Policy': POLICY, 'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'same-origin', ...headers,
    });
    res.end(html);
  }

  const go = ({ res }, location, headers = {}) => res.writeHead(303, { Location: location, ...headers }).end();

  async function before(context) {
    context.res.setHeader('X-Content-Type-Options', 'nosniff');
    context.res.setHeader('Cache-Control', 'no-store');
    if (['/login', '/logout', '/api/health', '/metrics', '/public/:name'].includes(context.route)) return;
    if (await sessions.known(context)) return;
    throw new HttpError(401, 'Unauthorized', { fields: { message: 'Unauthorized' } });
  }

  async function login(context) {
    const { req } = context;
    const json = /^application\/json\b/.test(req.headers['content-type'] ?? '');
    const form = json ? await readJson(req) : Object.fromEntries(new URLSearchParams(await readBody(req)));
    try {
      await sessions.check(form.user ?? '', form.password ?? '', context.client);
    } catch (error) {
      log.warn('login refused', { requestId: context.requestId, client: context.client, status: error.status });
      if (json) throw new HttpError(error.status, error.message, { fields: { message: error.message }, headers: error.headers });
      show(context, error.status, loginPage(localPath(form.redirect), error.message), error.headers);
      return;
    }
    if (json) context.send(200, { message: 'Logged in', redirectUrl: '/' }, sessions.begin());
    else go(context, localPath(form.redirect), sessions.begin());
  }

  function search({ url, send }) {
    const wanted = (url.searchParams.get('query') ?? '').toLowerCase();
    const type = url.searchParams.get('type') ?? 'dash-db';
    const found = [...catalogue().dashboards.values()].filter(({ model }) => type === 'dash-db' && model.title.toLowerCase().includes(wanted));
    send(200, found.map(({ model, folder }) => ({
      uid: model.uid, title: model.title, uri: `db/${slug(model.title)}`, url: `/d/${encodeURIComponent(model.uid)}/${slug(model.title)}`,
      type: 'dash-db', tags: model.tags ?? [], isStarred: false, ...(folder && { folderTitle: folder }),
    })));
  }

  function find(uid) {
    const found = catalogue().dashboards.get(uid);
    if (found) return found;
    const left = catalogue().problems.map(({ file, message }) => `${file}: ${message}`);
    const message = `Dashboard not found${left.length ? `; files that are left out: ${left.join('; ')}` : ''}`;
    throw new HttpError(404, message, { fields: { message } });
  }

  function sourceOf(uid, type) {
    const source = catalogue().datasources.get(uid);
    if (!source) throw new HttpError(404, `there is no datasource with the uid ${uid}`);
    if (source.type !== type) throw new HttpError(403, `datasource ${source.name} is of type ${source.type}, not ${type}`);
    return source;
  }

  function part(name, value) {
    if (!PARTS[name].test(value)) throw new HttpError(400, `${value} is no ${name}`);
    return value;
  }

  async function ask(context, type) {
    const { req, res, params, url } = context;
    const source = sourceOf(params.uid, type);
    const target = source.url + context.route.slice(PROXY.length).replace(/:(\w+)/, (_, name) => part(name, params[name])) + url.search;
    const ending = new AbortController();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      ending.abort();
    }, settings.GF_DATAPROXY_TIMEOUT * 1000);
    res.on('close', () => {
      clearTimeout(timer);
      ending.abort();
    });
    const options = { method: req.method, redirect: 'error', signal: ending.signal };
    if (req.method === 'POST') Object.assign(options, { body: await readBody(req), headers: { 'Content-Type': 'application/x-www-form-urlencoded' } });
    let answer;
    try {
      answer = await fetch(target, options);
    } catch (error) {
      if (res.destroyed) return;
      log.warn('the datasource is not available', { requestId: context.requestId, datasource: source.name, error: error.cause ?? error });
      if (late) throw new HttpError(504, `datasource ${source.name} did not answer within ${settings.GF_DATAPROXY_TIMEOUT} s`);
      throw new HttpError(502, `datasource ${source.name} is not available`);
    }
    res.writeHead(answer.status, { 'Content-Type': answer.headers.get('content-type') ?? 'application/json' });
    await pipeline(Readable.fromWeb(answer.body), res).catch(() => res.destroy());
  }

  const service = createService({
    settings, log, registry, before,
    routes: [
      {
        method: 'GET', path: '/api/health', quiet: true,
        handler: ({ send }) => send(service.draining ? 503 : 200, { database: service.draining ? 'draining' : 'ok', version, commit: 'grafana-viewer' }),
      },
      {
        method: 'GET', path: '/login',
        handler: (context) => show(context, 200, loginPage(localPath(context.url.searchParams.get('redirect')))),
      },
      { method: 'POST', path: '/login', handler: login },
      { method: 'GET', path: '/logout', handler: (context) => go(context, '/login', sessions.end(context.req)) },
      {
        method: 'GET', path: '/public/:name', quiet: true,
        handler: ({ res, params }) => {
          const file = assets.get(params.name);
          if (!file) throw new HttpError(404, 'not found');
          res.writeHead(200, { 'Content-Type': TYPES[params.name.split('.').pop()], 'Content-Length': file.length, 'Cache-Control': 'no-cache' }).end(file);
        },
      },
      { method: 'GET', path: '/', handler: (context) => show(context, 200, listPage(catalogue())) },
      { method: 'GET', path: '/dashboards', handler: (context) => show(context, 200, listPage(catalogue())) },
      ...['/d/:uid', '/d/:uid/:slug'].map((path) => ({
        method: 'GET', path, handler: (context) => show(context, 200, dashboardPage(find(context.params.uid))),
      })),
      { method: 'GET', path: '/api/search', handler: search },
      {
        method: 'GET', path: '/api/dashboards/uid/:uid',
        handler: ({ params, send }) => {
          const { model, folder, file } = find(params.uid);
          const meta = { type: 'db', slug: slug(model.title), url: `/d/${model.uid}/${slug(model.title)}`, folderTitle: folder || 'General', provisioned: true, provisionedExternalId: file, canEdit: false, canSave: false, canAdmin: false };
          send(200, { dashboard: model, meta });
        },
      },
      {
        method: 'GET', path: '/api/datasources',
        handler: ({ send }) => send(200, [...catalogue().datasources.values()].map((source, index) => ({ id: index + 1, access: 'proxy', readOnly: true, ...source }))),
      },
      {
        method: 'GET', path: '/trace/:uid/:trace',
        handler: (context) => {
          const { uid, trace } = context.params;
          show(context, 200, tracePage(sourceOf(uid, 'jaeger'), part('trace', trace), catalogue().dashboards));
        },
      },
      ...Object.entries(ASKED).flatMap(([type, paths]) => paths.flatMap((path) => (path.includes(':') ? ['GET'] : ['GET', 'POST']).map((method) => ({
        method, path: PROXY + path, quiet: true, handler: (context) => ask(context, type),
      })))),
    ],
    errorPage: (error, context) => {
      if (context.path.startsWith('/api/') || context.path === '/metrics' || context.path === '/login') return false;
      if (error.status === 401) go(context, `/login?redirect=${encodeURIComponent(context.req.url)}`);
      else show(context, error.status, problemPage(error.status, error.message, context.requestId), error.headers);
      return true;
    },
  });
  catalogue();
  return { service, release: async () => {} };
}
