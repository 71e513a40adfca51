// A panel: its queries, and what its type makes of their answers.
import { clockText, gauge, make, sparkline, timeSeries } from './draw.js';
import { ask, askLines, builtins, duration, seconds, stepFor } from './query.js';
import { format, knows, moment } from './units.js';
import { align, colour, fieldOptions, mapped, markdown, mergeTable, paletteColour, reduce, seriesName, sortRows, thresholdColour, transform } from './values.js';
import { interpolate } from './variables.js';

const LOGS = 'victoriametrics-logs-datasource';

export class NoData extends Error {}

function datasourceOf(wanted, page) {
  const name = interpolate(typeof wanted === 'string' ? wanted : wanted?.uid ?? '', page.variables);
  const found = name && name !== 'default' && name !== '-- Mixed --' ? page.datasources.find(({ uid, name: called }) => uid === name || called === name)
    : page.datasources.find(({ isDefault }) => isDefault) ?? page.datasources.find(({ type }) => type === 'prometheus');
  if (!found) throw new Error(name ? `there is no datasource ${name}` : 'no datasource is provisioned');
  return found;
}

/** Ask all of a panel's queries: [{ target, refId, result, values? }] with Prometheus' vectors (`instant`) or matrices. */
async function answers(panel, page, width, { instant = () => false, signal }) {
  const shown = (panel.targets ?? []).filter((target) => !target.hide && target.expr);
  if (!shown.length) throw new Error('the panel has no query');
  return Promise.all(shown.map(async (target) => {
    const source = datasourceOf(target.datasource ?? panel.datasource, page);
    const scrape = seconds(source.jsonData?.timeInterval || '15s');
    const least = Math.max(scrape, ...[panel.interval, target.interval].filter(Boolean).map((text) => seconds(interpolate(text, page.variables))));
    const length = (page.range.to - page.range.from) / 1000;
    const step = stepFor(length, Math.min(panel.maxDataPoints ?? width, width), least) * (target.intervalFactor ?? 1);
    const query = interpolate(target.expr, page.variables, builtins(page.range, step, scrape));
    const [start, end] = [Math.floor(page.range.from / 1000 / step) * step, Math.floor(page.range.to / 1000 / step) * step];
    if (source.type === LOGS) {
      if (target.queryType !== 'statsRange') throw new Error(`queries of type ${target.queryType} are not supported by the viewer in this panel`);
      const data = await ask(source.uid, 'select/logsql/stats_query_range', { query, start, end: end + step, step: duration(step) }, { signal });
      return { target, refId: target.refId, step, start, end, result: data.result };
    }
    if (instant(target)) {
      const data = await ask(source.uid, 'api/v1/query', { query, time: page.range.to / 1000 }, { signal });
      if (data.resultType === 'scalar') return { target, refId: target.refId, step, result: [{ metric: {}, value: data.result }] };
      if (data.resultType !== 'vector') throw new Error(`the query gives a ${data.resultType}, not a value a series`);
      return { target, refId: target.refId, step, result: data.result };
    }
    const data = await ask(source.uid, 'api/v1/query_range', { query, start, end, step }, { signal });
    return { target, refId: target.refId, step, start, end, result: data.result };
  }));
}

function named(metric, target, panel, page) {
  const name = seriesName(metric, interpolate(target.legendFormat ?? '', page.variables), target.expr);
  const field = fieldOptions(panel, { name, refId: target.refId });
  const display = (field.displayName ?? '').replace(/\$\{__field\.labels\.(\w+)\}/g, (_, label) => metric[label] ?? '').replace(/\$\{__(field|series)\.(name|displayName)\}/g, name);
  return { name: display ? interpolate(display, page.variables) : name, field };
}

/** A panel's series, each with values on one axis of time: { times, series: [{ name, field, values, color }] }. */
async function seriesOf(panel, page, width, options) {
  const all = await answers(panel, page, width, options);
  const matrices = all.filter(({ start }) => start !== undefined);
  const [start, end] = matrices.length ? [Math.min(...matrices.map((one) => one.start)), Math.max(...matrices.map((one) => one.end))] : [page.range.to / 1000, page.range.to / 1000];
  const step = matrices.length ? Math.min(...matrices.map((one) => one.step)) : 1;
  const flat = all.flatMap(({ target, result }) => result.map((one) => ({ target, ...one, values: one.values ?? [one.value] })));
  const { times, columns } = align(flat, start, end, step);
  const series = flat.map(({ metric, target }, index) => ({ ...named(metric, target, panel, page), values: columns[index] }))
    .filter(({ values, field }) => !field.custom.hideFrom?.viz && values.some((value) => value !== null));
  if (!series.length) throw new NoData();
  series.forEach((one, index) => {
    const { mode = 'palette-classic', fixedColor } = one.field.color ?? {};
    if (mode === 'fixed' || mode === 'shades') one.color = colour(fixedColor);
    else if (mode === 'thresholds') one.color = thresholdColour(reduce(one.values), one.field);
    else one.color = paletteColour(index);
  });
  return { times, series };
}

/** A value as a panel shows it: { text, color }. */
function shown(value, field) {
  const map = mapped(value, field.mappings);
  const { mode = 'thresholds', fixedColor } = field.color ?? {};
  const plain = mode === 'fixed' ? colour(fixedColor) : thresholdColour(value, field);
  return { text: map?.text ?? (value === null ? field.noValue ?? 'No data' : format(value, field.unit, field.decimals)), color: map?.color ? colour(map.color) : plain };
}

const single = ({ instant, range }) => Boolean(instant) && !range;

/** Reduced values for stat, gauge and bargauge. */
async function reduced(panel, page, element, signal) {
  const { series } = await seriesOf(panel, page, Math.max(100, element.clientWidth / 2), { instant: single, signal });
  const how = panel.options?.reduceOptions?.calcs?.[0] ?? 'lastNotNull';
  return series.map((one) => {
    const value = reduce(one.values, how);
    return { ...one, value, ...shown(value, one.field) };
  });
}

function limits(field, values) {
  const unitMax = { percent: 100, percentunit: 1 }[field.unit];
  const steps = (field.thresholds?.mode === 'absolute' ? field.thresholds.steps ?? [] : []).map(({ value }) => value ?? 0);
  const min = field.min ?? Math.min(0, ...values);
  return { min, max: field.max ?? unitMax ?? (Math.max(...values, ...steps) || 1) };
}

async function showStat(panel, page, element, signal) {
  const values = await reduced(panel, page, element, signal);
  const { colorMode = 'value', graphMode = 'area', textMode = 'auto' } = panel.options ?? {};
  const withName = ['value_and_name', 'name'].includes(textMode) || (textMode === 'auto' && values.length > 1);
  const longest = Math.max(...values.map(({ text, name }) => Math.max(text.length, withName ? name.length * 0.5 : 0)));
  const columns = Math.max(1, Math.min(values.length, Math.floor(element.clientWidth / Math.max(110, longest * 9))));
  const [width, height] = [element.clientWidth / columns, element.clientHeight / Math.ceil(values.length / columns)];
  const size = Math.max(14, Math.min(64, height * (withName ? 0.4 : 0.5), (width - 24) / (longest * 0.62)));
  element.replaceChildren(make('div', { className: 'stats', style: { 'grid-template-columns': `repeat(${columns}, 1fr)` } }, values.map(({ text, name, color, values: all }) => {
    const onColour = colorMode.startsWith('background');
    return make('div', { className: onColour ? 'stat filled' : 'stat', style: onColour ? { background: color } : {} },
      graphMode === 'area' && !onColour ? sparkline(all, color) : null,
      withName ? make('span', { className: 'name', title: name }, name) : null,
      textMode === 'name' ? null : make('b', { style: { 'font-size': `${size.toFixed(1)}px`, ...(colorMode === 'value' && { color }) } }, text));
  })));
}

async function showGauge(panel, page, element, signal) {
  const values = await reduced(panel, page, element, signal);
  element.replaceChildren(make('div', { className: 'gauges' }, values.map(({ value, text, color, name, field }) => {
    const { min, max } = limits(field, values.map((one) => one.value));
    const share = (number) => Math.min(1, Math.max(0, (number - min) / (max - min || 1)));
    const steps = field.thresholds?.steps ?? [];
    const at = (step) => (step?.value === null || step?.value === undefined ? 0 : field.thresholds.mode === 'percentage' ? step.value / 100 : share(step.value));
    const bands = panel.options?.showThresholdMarkers === false ? [] : steps.map((step, index) => ({ from: at(step), to: index + 1 < steps.length ? at(steps[index + 1]) : 1, color: colour(step.color) }));
    return make('figure', {}, gauge(share(value), color, bands, text), values.length > 1 ? make('figcaption', { title: name }, name) : null);
  })));
}

async function showBarGauge(panel, page, element, signal) {
  const values = await reduced(panel, page, element, signal);
  element.replaceChildren(make('div', { className: 'bars' }, values.map(({ value, text, color, name, field }) => {
    const { min, max } = limits(field, values.map((one) => one.value));
    const share = Math.min(1, Math.max(0, (value - min) / (max - min || 1)));
    return make('div', { className: 'bar' }, make('span', { className: 'name', title: name }, name),
      make('div', { className: 'track' }, make('div', { className: 'fill', style: { width: `${share * 100}%`, background: color } })), make('b', { style: { color } }, text));
  })));
}

async function showTable(panel, page, element, signal) {
  const all = await answers(panel, page, 100, { instant: () => true, signal });
  if (!all.some(({ result }) => result.length)) throw new NoData();
  const table = transform(mergeTable(all), panel.transformations);
  const fieldOf = (name) => fieldOptions(panel, { name, type: table.rows.some((row) => typeof row[name] === 'number') ? 'number' : 'string' });
  const columns = table.columns.map((name) => ({ name, field: fieldOf(name), number: table.rows.some((row) => typeof row[name] === 'number') }))
    .filter(({ field }) => !field.custom.hidden && !field.custom.hideFrom?.viz);
  const title = ({ name, field }) => field.displayName || name;
  let sort = panel.options?.sortBy?.[0] && { by: panel.options.sortBy[0].displayName, desc: Boolean(panel.options.sortBy[0].desc) };
  function cell(row, { name, field, number }) {
    const value = row[name];
    const type = field.custom.cellOptions?.type ?? 'auto';
    const { text, color } = number ? shown(value ?? null, { noValue: '-', ...field }) : { text: value ?? '', ...mapped(value ?? '', field.mappings) };
    const style = type === 'color-text' && color ? { color: colour(color) } : type === 'color-background' && color ? { background: colour(color), color: '#111217' } : {};
    if (type === 'gauge' && typeof value === 'number') {
      const { min, max } = limits(field, table.rows.map((one) => one[name]).filter((one) => typeof one === 'number'));
      style.background = `linear-gradient(90deg, ${color}55 ${((value - min) / (max - min || 1)) * 100}%, transparent 0)`;
    }
    return make('td', { className: number ? 'number' : '', style, title: text }, text ?? '');
  }
  function draw() {
    const by = sort && columns.find((column) => title(column) === sort.by || column.name === sort.by);
    const rows = by ? sortRows(table.rows, by.name, sort.desc) : table.rows;
    element.replaceChildren(make('div', { className: 'scroll' }, make('table', {},
      make('thead', {}, make('tr', {}, columns.map((column) => make('th', {
        className: column.number ? 'number' : '', tabIndex: 0,
        onclick: () => {
          sort = { by: title(column), desc: sort?.by === title(column) ? !sort.desc : column.number };
          draw();
        },
      }, `${title(column)}${by === column ? (sort.desc ? ' ↓' : ' ↑') : ''}`)))),
      make('tbody', {}, rows.slice(0, 500).map((row) => make('tr', {}, columns.map((column) => cell(row, column)))))),
    rows.length > 500 ? make('p', { className: 'quiet' }, `${rows.length - 500} more rows`) : null));
  }
  draw();
}

const CALCS = { lastNotNull: 'Last', last: 'Last', max: 'Max', min: 'Min', mean: 'Mean', sum: 'Total' };

function legendOf(panel, series, choose) {
  const { displayMode = 'list', calcs = [], showLegend = true } = panel.options?.legend ?? {};
  if (!showLegend || displayMode === 'hidden') return null;
  const how = calcs.length ? calcs : ['lastNotNull'];
  const value = (one, calc) => format(reduce(one.values, calc), one.field.unit, one.field.decimals);
  const items = series.map((one, index) => ({ one, index })).filter(({ one }) => !one.field.custom.hideFrom?.legend);
  const swatch = (one) => make('i', { className: 'swatch', style: { background: one.color } });
  if (displayMode === 'table') {
    return make('div', { className: 'legend scroll' }, make('table', {},
      make('thead', {}, make('tr', {}, make('th', {}, 'Name'), how.map((calc) => make('th', { className: 'number' }, CALCS[calc] ?? calc)))),
      make('tbody', {}, items.map(({ one, index }) => make('tr', { onclick: () => choose(index) }, make('td', { title: one.name }, swatch(one), one.name), how.map((calc) => make('td', { className: 'number' }, value(one, calc))))))));
  }
  return make('div', { className: 'legend list' }, items.map(({ one, index }) => make('button', { type: 'button', title: one.name, onclick: () => choose(index) },
    swatch(one), make('span', {}, one.name), how.map((calc) => make('b', { title: CALCS[calc] ?? calc }, how.length > 1 ? `${CALCS[calc] ?? calc}: ${value(one, calc)}` : value(one, calc))))));
}

async function showTimeSeries(panel, page, element, signal) {
  const { times, series } = await seriesOf(panel, page, Math.max(100, element.clientWidth), { instant: single, signal });
  let chosen;
  let plot;
  const choose = (index) => {
    chosen = chosen === index ? undefined : index;
    series.forEach((_, other) => plot.setSeries(other + 1, { show: chosen === undefined || chosen === other }));
  };
  const canvas = make('div', { className: 'plot' });
  const right = panel.options?.legend?.placement === 'right';
  element.replaceChildren(make('div', { className: right ? 'chart right' : 'chart' }, canvas, legendOf(panel, series, choose)));
  plot = timeSeries(canvas, { times, series, range: page.range, tooltip: page.tooltip, onZoom: page.zoom });
  const observer = new ResizeObserver(() => plot.setSize({ width: canvas.clientWidth, height: canvas.clientHeight }));
  observer.observe(canvas);
  return () => {
    observer.disconnect();
    plot.destroy();
  };
}

async function showStateTimeline(panel, page, element, signal) {
  const { times, series } = await seriesOf(panel, page, Math.max(100, element.clientWidth / 2), { signal });
  const [from, to] = [page.range.from / 1000, page.range.to / 1000];
  const step = times[1] - times[0] || 1;
  const place = (at) => `${(Math.min(1, Math.max(0, (at - from) / (to - from))) * 100).toFixed(3)}%`;
  const rows = series.map(({ name, values, field }) => {
    const blocks = [];
    values.forEach((value, index) => {
      const last = blocks.at(-1);
      if (value === null) return;
      if (last && last.value === value && last.end === index) last.end = index + 1;
      else blocks.push({ value, start: index, end: index + 1 });
    });
    return make('div', { className: 'lane' }, make('span', { className: 'name', title: name }, name), make('div', { className: 'track' }, blocks.map(({ value, start, end }) => {
      const { text, color } = shown(value, field);
      const [left, right] = [times[start], times[end - 1] + step];
      return make('div', { className: 'state', title: `${text}, ${clockText(left, 1)} to ${clockText(right, 1)}`, style: { left: place(left), right: `calc(100% - ${place(right)})`, background: color } }, (right - left) / (to - from) > 0.08 ? text : '');
    })));
  });
  const marks = [0, 1, 2, 3, 4, 5].map((index) => from + ((to - from) * index) / 5);
  element.replaceChildren(make('div', { className: 'lanes', style: { 'grid-template-rows': `repeat(${rows.length}, minmax(22px, 48px)) 18px` } }, rows, make('div', { className: 'lane axis' }, make('span', { className: 'name' }), make('div', { className: 'marks' }, marks.map((at) => make('span', {}, clockText(at, (to - from) / 5)))))));
}

const span = ({ kind, text, href }) => (kind === 'text' ? text : make(kind, kind === 'a' ? { href, rel: 'noopener', target: '_blank' } : {}, text));

async function showText(panel, page, element) {
  const { mode = 'markdown', content = '' } = panel.options ?? {};
  const text = interpolate(content, page.variables);
  const blocks = mode === 'markdown' ? markdown(text).map(({ kind, level, spans, items }) => (kind === 'ul' ? make('ul', {}, items.map((item) => make('li', {}, item.map(span)))) : make(kind === 'h' ? `h${level}` : 'p', {}, spans.map(span)))) : [make('pre', {}, text)];
  element.replaceChildren(make('div', { className: 'text scroll' }, blocks));
}

const LEVELS = { fatal: 'error', critical: 'error', panic: 'error', error: 'error', warn: 'warn', warning: 'warn', info: 'info' };

const APART = new Set(['_time', '_msg', '_stream', '_stream_id', 'namespace', 'pod', 'container', 'node', 'level', 'name', 'requestId', 'traceId', 'spanId']);
const restOf = (line) => Object.entries(line).filter(([name, value]) => value && !APART.has(name)).map(([name, value]) => `${name}=${value}`).join(' ');

function clockOf(line) {
  const at = Date.parse(line._time);
  return `${moment(at)}.${String(at % 1000).padStart(3, '0')}`;
}

/** Links from a line's fields to other datasources, as the datasource of the logs has them: [[label, path]]. */
function linksOf(line, source, page) {
  return (source.jsonData?.derivedFields ?? []).flatMap(({ matcherType, matcherRegex, datasourceUid, urlDisplayLabel, name }) => {
    const value = matcherType === 'label' ? line[matcherRegex] : undefined;
    const isTrace = page.datasources.some(({ uid, type }) => uid === datasourceUid && type === 'jaeger');
    return value && isTrace ? [[urlDisplayLabel || name, `/trace/${encodeURIComponent(datasourceUid)}/${encodeURIComponent(value)}`]] : [];
  });
}

async function showLogs(panel, page, element, signal) {
  const target = (panel.targets ?? []).find(({ hide, expr }) => !hide && expr);
  if (!target) throw new Error('the panel has no query');
  const source = datasourceOf(target.datasource ?? panel.datasource, page);
  if (source.type !== LOGS) throw new Error(`the viewer has no logs of a ${source.type}`);
  const query = interpolate(target.expr, page.variables, builtins(page.range, 15, 15));
  const lines = await askLines(source.uid, { query, start: page.range.from / 1000, end: page.range.to / 1000, limit: target.maxLines ?? 1000 }, { signal });
  if (!lines.length) throw new NoData();
  const sign = panel.options?.sortOrder === 'Ascending' ? 1 : -1;
  lines.sort((a, b) => sign * (a._time < b._time ? -1 : a._time > b._time ? 1 : 0));
  element.replaceChildren(make('div', { className: 'lines scroll' }, lines.map((line) => make('details', { className: 'line', data: { level: LEVELS[line.level?.toLowerCase()] ?? '' } },
    make('summary', {}, make('time', {}, clockOf(line)), make('b', { title: `${line.namespace}/${line.pod}` }, line.container ?? ''), make('span', {}, line._msg ?? '', make('span', { className: 'quiet' }, ` ${restOf(line)}`)),
      linksOf(line, source, page).map(([label, href]) => make('a', { href, className: 'link' }, label))),
    make('table', {}, make('tbody', {}, Object.entries(line).filter(([name]) => !name.startsWith('_stream')).map(([name, value]) => make('tr', {}, make('th', {}, name), make('td', {}, value)))))))));
}

const TYPES = { timeseries: showTimeSeries, stat: showStat, gauge: showGauge, bargauge: showBarGauge, table: showTable, logs: showLogs, text: showText, 'state-timeline': showStateTimeline };

/** Units of a dashboard that the viewer shows by their names only. */
export const unknownUnits = (panels) => [...new Set(panels.map((panel) => panel.fieldConfig?.defaults?.unit).filter((unit) => unit && !/^(suffix|prefix|time):/.test(unit) && !knows(unit)))];

/** Fill a panel's element: asks, draws, says in `data-state` how it went. Returns what undoes the drawing, if anything. */
export async function fill(panel, page, frame, signal) {
  const element = frame.querySelector('.body');
  const say = (state, text) => {
    element.replaceChildren(make('p', { className: `notice ${state}`, role: state === 'error' ? 'alert' : 'status' }, text));
    frame.dataset.state = state;
  };
  try {
    const show = TYPES[panel.type];
    if (!show) throw new Error(`panels of type ${panel.type} are not supported by the viewer`);
    if (panel.repeat) throw new Error('repeated panels are not supported by the viewer');
    const undo = await show(panel, page, element, signal);
    frame.dataset.state = 'data';
    return undo;
  } catch (error) {
    if (signal.aborted) return undefined;
    if (error instanceof NoData) say('empty', panel.fieldConfig?.defaults?.noValue ?? 'No data');
    else say('error', error.message);
    return undefined;
  }
}
