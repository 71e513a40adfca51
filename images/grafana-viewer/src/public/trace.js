// The page of one trace: its spans as bars.
import { make } from './draw.js';
import { rowsOf } from './spans.js';
import { format, moment } from './units.js';
import { paletteColour } from './values.js';

const { uid, trace, lines } = document.body.dataset;
const EARLIER = 300000;

function draw(found) {
  const rows = rowsOf(found);
  const services = [...new Set(rows.map(({ service }) => service))];
  const whole = Math.max(...rows.map(({ at, ms }) => at + ms)) || 1;
  const begin = Math.min(...found.spans.map(({ startTime }) => startTime)) / 1000;
  const failed = rows.filter(({ error }) => error).length;
  const range = `&from=${Math.floor(begin - EARLIER)}&to=${Math.ceil(begin + whole + EARLIER)}`;
  document.getElementById('trace').replaceChildren(
    make('p', { className: 'quiet' }, `${moment(begin)}, ${format(whole, 'ms')}, ${rows.length} spans, ${failed || 'none'} failed `, lines ? make('a', { href: `${lines}${trace}${range}`, className: 'link' }, 'Lines of its logs') : null),
    make('div', { className: 'spans' }, rows.map((row) => {
      const color = paletteColour(services.indexOf(row.service));
      return make('details', { className: row.error ? 'span failed' : 'span', data: { spanId: row.id } },
        make('summary', {},
          make('span', { className: 'name', style: { 'padding-left': `${row.depth * 16}px` }, title: `${row.service}: ${row.name}` }, make('i', { className: 'swatch', style: { background: color } }), make('b', {}, row.service), ` ${row.name}`),
          make('span', { className: 'track' }, make('span', { className: 'fill', style: { left: `${(row.at / whole) * 100}%`, width: `${(row.ms / whole) * 100}%`, background: color } })),
          make('span', { className: 'number' }, format(row.ms, 'ms'))),
        row.error ? make('p', { className: 'error' }, row.error) : null,
        make('table', {}, make('tbody', {}, Object.entries(row.tags).map(([name, value]) => make('tr', {}, make('th', {}, name), make('td', {}, String(value)))))));
    })),
  );
}

async function start() {
  const answer = await fetch(`/api/datasources/proxy/uid/${encodeURIComponent(uid)}/api/traces/${trace}`);
  if (answer.status === 401) window.location.assign(`/login?redirect=${encodeURIComponent(window.location.pathname)}`);
  const json = await answer.json().catch(() => ({}));
  const [found] = json.data ?? [];
  if (found?.spans?.length) draw(found);
  else throw new Error(answer.status === 404 || answer.ok ? 'There is no such trace: it comes some seconds after the request, and is not kept for ever.' : json.error ?? `status ${answer.status}`);
}

start().catch((error) => {
  document.getElementById('message').textContent = error.message;
  document.getElementById('message').hidden = false;
}).finally(() => { document.body.dataset.loaded = 'true'; });
