// The page of one dashboard.
import { make } from './draw.js';
import { fill, unknownUnits } from './panels.js';
import { ask, instant, seconds } from './query.js';
import { ALL, interpolate, resolve } from './variables.js';

const RANGES = [['15m', 'Last 15 minutes'], ['1h', 'Last hour'], ['6h', 'Last 6 hours'], ['24h', 'Last 24 hours'], ['7d', 'Last 7 days']];
const REFRESHES = ['', '5s', '15s', '30s', '1m', '5m'];
const byId = (id) => document.getElementById(id);
const grid = byId('grid');
const search = new URLSearchParams(window.location.search);

const page = { variables: new Map(), datasources: [], range: undefined, tooltip: byId('tooltip'), zoom };
let model;
let time;
let refresh;
let views = [];
let loading = new AbortController();
let timer;

async function get(path) {
  const answer = await fetch(path);
  if (answer.status === 401) window.location.assign(`/login?redirect=${encodeURIComponent(window.location.pathname + window.location.search)}`);
  if (!answer.ok) throw new Error(`${path}: ${(await answer.json().catch(() => ({}))).message ?? answer.status}`);
  return answer.json();
}

function complain(text) {
  byId('message').textContent = text;
  byId('message').hidden = !text;
}

function remember() {
  const state = new URLSearchParams({ from: time.from, to: time.to, ...(refresh && { refresh }) });
  for (const { name, value, type } of page.variables.values()) if (type !== 'constant') for (const one of value) state.append(`var-${name}`, one);
  window.history.replaceState(null, '', `?${state}`);
}

/** Panels by their rows: [{ row?, panels }], whether the row is collapsed (its panels are in it) or not (they follow it). */
function sections(panels) {
  const ordered = [...panels].sort((a, b) => (a.gridPos?.y ?? 0) - (b.gridPos?.y ?? 0) || (a.gridPos?.x ?? 0) - (b.gridPos?.x ?? 0));
  const found = [{ panels: [] }];
  for (const panel of ordered) {
    if (panel.type === 'row') found.push({ row: panel, panels: [...(panel.panels ?? [])] });
    else found.at(-1).panels.push(panel);
  }
  return found.filter(({ row, panels: inside }) => row || inside.length);
}

function frameOf(panel, top) {
  const { x = 0, y = 0, w = 12, h = 8 } = panel.gridPos ?? {};
  const title = interpolate(panel.title ?? '', page.variables);
  const links = (panel.links ?? []).filter(({ url }) => /^(https?:\/\/|\/(?!\/))/.test(url ?? ''));
  return make('section', {
    className: `panel${panel.transparent ? ' transparent' : ''}`, data: { panelId: String(panel.id), state: 'loading', type: panel.type },
    style: { 'grid-column': `${x + 1} / span ${w}`, 'grid-row': `${y - top + 1} / span ${h}` },
  }, title || panel.description ? make('h3', {}, make('span', { className: 'heading' }, title), panel.description ? make('span', { className: 'info', title: interpolate(panel.description, page.variables), tabIndex: 0, role: 'note', ariaLabel: panel.description }, 'i') : null,
    links.map((link) => make('a', { href: interpolate(link.url, page.variables), className: 'link', target: '_blank', rel: 'noopener' }, link.title || 'link', ' ↗'))) : null,
  make('div', { className: 'body' }, make('p', { className: 'notice' }, 'Loading')));
}

function layOut() {
  for (const view of views) view.undo?.();
  views = [];
  grid.replaceChildren(...sections(model.panels).map(({ row, panels }) => {
    const top = Math.min(...panels.map(({ gridPos }) => gridPos?.y ?? 0));
    const own = panels.map((panel) => ({ panel, frame: frameOf(panel, top), open: !row?.collapsed }));
    views.push(...own);
    const cells = make('div', { className: 'cells', hidden: Boolean(row?.collapsed) }, own.map(({ frame }) => frame));
    if (!row) return cells;
    const button = make('button', { type: 'button', className: 'row', ariaExpanded: String(!row.collapsed), data: { rowId: String(row.id ?? '') } }, interpolate(row.title ?? '', page.variables));
    button.onclick = () => {
      cells.hidden = !cells.hidden;
      button.ariaExpanded = String(!cells.hidden);
      for (const view of own) view.open = !cells.hidden;
      if (!cells.hidden) load({ only: own });
    };
    return make('div', { className: 'section' }, button, cells);
  }));
}

/** Ask and draw every visible panel; the body tells when each has its first answer. */
async function load({ only = views, fresh = false } = {}) {
  clearTimeout(timer);
  if (only === views) {
    loading.abort();
    loading = new AbortController();
  }
  const { signal } = loading;
  const now = Date.now();
  page.range = { from: instant(time.from, now), to: instant(time.to, now) };
  await Promise.all(only.filter(({ open }) => open).map(async (view) => {
    if (fresh) view.frame.dataset.state = 'loading';
    const before = view.undo;
    view.undo = undefined;
    const undo = await fill(view.panel, page, view.frame, signal);
    before?.();
    view.undo = undo;
  }));
  if (signal.aborted) return;
  document.body.dataset.loaded = 'true';
  if (refresh) timer = setTimeout(() => (document.hidden ? document.addEventListener('visibilitychange', () => load(), { once: true }) : load()), seconds(refresh) * 1000);
}

/** Resolve the variables anew, then everything that depends on them. */
async function start(wanted) {
  document.body.dataset.loaded = 'false';
  const now = Date.now();
  const [from, to] = [instant(time.from, now) / 1000, instant(time.to, now) / 1000];
  const source = page.datasources.find(({ isDefault }) => isDefault) ?? page.datasources[0];
  const askValues = (variable, before) => (label, metric) => {
    const uid = interpolate(variable.datasource?.uid ?? source?.uid ?? '', before);
    return ask(uid, `api/v1/label/${label}/values`, { start: from, end: to, 'match[]': metric }, { method: 'GET' });
  };
  page.variables = await resolve(model.templating?.list ?? [], { ask: askValues, datasources: page.datasources, wanted });
  const broken = [...page.variables.values()].filter(({ error }) => error).map(({ label, error }) => `variable ${label}: ${error}`);
  const units = unknownUnits(model.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]));
  complain([...broken, ...(units.length ? [`units shown by name only: ${units.join(', ')}`] : [])].join('; '));
  showVariables();
  remember();
  layOut();
  await load({ fresh: true });
}

/** Start anew with the values in force, and one changed. */
function change(name, value) {
  const values = new Map([...page.variables.values()].map((variable) => [variable.name, variable.value]));
  if (name) values.set(name, value);
  run(start((one) => values.get(one)));
}

function selectFor(variable) {
  const options = [...(variable.includeAll ? [{ text: 'All', value: ALL }] : []), ...variable.options];
  if (!variable.multi) {
    return make('select', { name: `var-${variable.name}`, onchange: (event) => change(variable.name, [event.target.value]) },
      options.map(({ text, value }) => make('option', { value, selected: variable.value.includes(value) }, text)));
  }
  const boxes = options.map(({ text, value }) => {
    const box = make('input', { type: 'checkbox', value, checked: variable.value.includes(value) });
    box.onchange = () => {
      // All excludes the others, and the others All.
      for (const other of boxes.map(({ box: one }) => one)) if (other !== box && (box.value === ALL || other.value === ALL)) other.checked = false;
    };
    return { box, label: make('label', {}, box, text) };
  });
  const details = make('details', { className: 'multi' }, make('summary', {}, variable.value.includes(ALL) ? 'All' : variable.value.join(' + ') || 'none'), make('div', {}, boxes.map(({ label }) => label)));
  details.ontoggle = () => {
    const picked = boxes.map(({ box }) => box).filter((box) => box.checked).map((box) => box.value);
    if (!details.open && picked.join('\n') !== variable.value.join('\n')) change(variable.name, picked);
  };
  return details;
}

function showVariables() {
  const shown = [...page.variables.values()].filter(({ hide, type }) => hide !== 2 && type !== 'constant');
  byId('variables').replaceChildren(...shown.map((variable) => make('label', { className: 'variable', title: variable.error ?? '' }, variable.hide === 1 ? null : make('span', {}, variable.label),
    variable.type === 'textbox' ? make('input', { value: variable.value[0] ?? '', onchange: (event) => change(variable.name, [event.target.value]) }) : selectFor(variable))),
  ...(model.links ?? []).filter(({ type, url }) => type === 'link' && /^(https?:\/\/|\/(?!\/))/.test(url ?? '')).map((link) => make('a', { href: link.url, className: 'link', target: '_blank', rel: 'noopener' }, link.title, ' ↗')));
  byId('variables').hidden = !byId('variables').childElementCount;
}

function showTimes() {
  const same = (value) => time.to === 'now' && (time.from === `now-${value}`);
  const known = RANGES.some(([value]) => same(value));
  const other = time.to === 'now' ? time.from.replace('now-', 'Last ') : 'Zoomed';
  byId('range').replaceChildren(...(known ? [] : [make('option', { value: '', selected: true }, other)]), ...RANGES.map(([value, text]) => make('option', { value, selected: same(value) }, text)));
  byId('refresh').replaceChildren(...[...new Set([...REFRESHES, refresh])].map((value) => make('option', { value, selected: value === refresh }, value || 'Off')));
}

function zoom(from, to) {
  time = { from: String(from), to: String(to) };
  page.tooltip.hidden = true;
  showTimes();
  change();
}

function run(promise) {
  promise.catch((error) => {
    complain(error.message);
    document.body.dataset.loaded = 'true';
  });
}

byId('range').onchange = ({ target }) => {
  if (!target.value) return;
  time = { from: `now-${target.value}`, to: 'now' };
  showTimes();
  change();
};
byId('refresh').onchange = ({ target }) => {
  refresh = target.value;
  remember();
  run(load());
};
byId('now').onclick = () => run(load());
document.addEventListener('click', ({ target }) => {
  for (const open of document.querySelectorAll('details.multi[open]')) if (!open.contains(target)) open.open = false;
});

run((async () => {
  const [found, datasources] = await Promise.all([get(`/api/dashboards/uid/${encodeURIComponent(document.body.dataset.uid)}`), get('/api/datasources')]);
  model = found.dashboard;
  page.datasources = datasources;
  time = { from: search.get('from') ?? model.time?.from ?? 'now-1h', to: search.get('to') ?? model.time?.to ?? 'now' };
  refresh = search.get('refresh') ?? (model.refresh || '');
  showTimes();
  await start((name) => (search.has(`var-${name}`) ? search.getAll(`var-${name}`) : undefined));
})());
