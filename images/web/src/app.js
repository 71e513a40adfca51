import { homePage, problemPage, productPage, searchPage } from './pages.js';
import { HttpError, createService, readBody } from './service.js';
import { createUpstream } from './upstream.js';

/** The web front end's service: { service, release }. */
export function createApp(settings, log) {
  const upstream = createUpstream(settings, log);

  function show({ res }, status, html, headers = {}) {
    res.writeHead(status, {
      'Content-Type': 'text/html; charset=utf-8', 'Content-Length': Buffer.byteLength(html),
      'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'", 'X-Content-Type-Options': 'nosniff', ...headers,
    });
    res.end(html);
  }

  /** The API's answer for a page; what it refused is passed on with its status. */
  async function ask(context, path, options) {
    const { status, json, headers } = await upstream.get(context, path, options);
    if (status < 300) return json;
    const details = Object.entries(json.errors ?? {}).map(([field, text]) => `; ${field} ${text}`).join('');
    const again = headers['retry-after'];
    throw new HttpError(status >= 500 ? 502 : status, `${json.error ?? 'the API refused the request'}${details}`, { headers: again ? { 'Retry-After': again } : {} });
  }

  async function create(context) {
    const form = new URLSearchParams(await readBody(context.req));
    const price = form.get('price');
    const product = await ask(context, '/api/products', {
      method: 'POST',
      body: { name: form.get('name') ?? '', description: form.get('description') ?? '', price: price ? Number(price) : null },
    });
    context.res.writeHead(303, { Location: `/products/${encodeURIComponent(product.id)}` }).end();
  }

  const service = createService({
    settings, log,
    routes: [
      { method: 'GET', path: '/', handler: async (context) => show(context, 200, homePage((await ask(context, '/api/products?limit=50')).items)) },
      {
        method: 'GET', path: '/search',
        handler: async (context) => {
          const query = (context.url.searchParams.get('q') ?? '').trim();
          const items = query ? (await ask(context, `/api/search?q=${encodeURIComponent(query)}`)).items : [];
          show(context, 200, searchPage(query, items));
        },
      },
      {
        method: 'GET', path: '/products/:id',
        handler: async (context) => show(context, 200, productPage(await ask(context, `/api/products/${encodeURIComponent(context.params.id)}`))),
      },
      { method: 'POST', path: '/products', handler: create },
      {
        method: 'GET', path: '/api/health', quiet: true,
        handler: ({ send }) => (service.draining ? send(503, { status: 'draining' }) : send(200, { status: 'ok' })),
      },
      { method: '*', path: '/api/*', handler: (context) => upstream.forward(context) },
    ],
    errorPage: (error, context) => {
      if (context.path.startsWith('/api/') || context.path === '/metrics') return false;
      show(context, error.status, problemPage(error.status, error.message, context.requestId), error.headers);
      return true;
    },
  });
  return { service, release: async () => upstream.close() };
}
