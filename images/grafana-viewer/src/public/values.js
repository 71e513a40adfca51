// From answers of Prometheus to what a panel shows: names, colours, mappings, reduced values, rows of a table.

const COLOURS = {
  green: '#73bf69', red: '#f2495c', orange: '#ff9830', yellow: '#fade2a', blue: '#5794f2', purple: '#b877d9', text: '#ccccdc', white: '#ffffff', black: '#000000', gray: '#808080', transparent: 'transparent',
  'dark-green': '#37872d', 'semi-dark-green': '#56a64b', 'light-green': '#96d98d', 'super-light-green': '#c8f2c2',
  'dark-red': '#c4162a', 'semi-dark-red': '#e02f44', 'light-red': '#ff7383', 'super-light-red': '#ffa6b0',
  'dark-orange': '#fa6400', 'semi-dark-orange': '#ff780a', 'light-orange': '#ffb357', 'super-light-orange': '#ffcb7d',
  'dark-yellow': '#e0b400', 'semi-dark-yellow': '#f2cc0c', 'light-yellow': '#ffee52', 'super-light-yellow': '#fff899',
  'dark-blue': '#1f60c4', 'semi-dark-blue': '#3274d9', 'light-blue': '#8ab8ff', 'super-light-blue': '#c0d8ff',
  'dark-purple': '#8f3bb8', 'semi-dark-purple': '#a352cc', 'light-purple': '#ca95e5', 'super-light-purple': '#deb6f2',
};
const PALETTE = ['green', 'semi-dark-yellow', 'light-blue', 'dark-orange', 'red', 'blue', 'purple', '#705da0', 'dark-green', 'yellow', '#447ebc', '#c15c17', '#890f02', '#0a437c', '#6d1f62', '#584477', '#b7dbab', '#f4d598', '#70dbed', '#f9ba8f'];

/** A colour's CSS value, from Grafana's name of it or from a CSS colour. */
export const colour = (name) => COLOURS[name] ?? name ?? COLOURS.green;
export const paletteColour = (index) => colour(PALETTE[index % PALETTE.length]);

/** The threshold that a value has passed; percentage thresholds are of the way from min to max. */
export function thresholdColour(value, { thresholds, min = 0, max = 100 } = {}) {
  const steps = thresholds?.steps ?? [];
  const measure = thresholds?.mode === 'percentage' ? ((value - min) / (max - min || 1)) * 100 : value;
  const passed = steps.filter((step) => step.value === null || step.value === undefined || measure >= step.value);
  return colour((passed.at(-1) ?? steps[0])?.color);
}

/** Thresholds as values: [{ value, color }], without the base. */
export function thresholdLines({ thresholds, min = 0, max = 100 } = {}) {
  return (thresholds?.steps ?? []).filter((step) => typeof step.value === 'number').map((step) => ({
    color: colour(step.color), value: thresholds.mode === 'percentage' ? min + ((max - min) * step.value) / 100 : step.value,
  }));
}

/** The text and colour that a mapping gives a value: { text, color }, or undefined. */
export function mapped(value, mappings = []) {
  for (const { type, options = {} } of mappings) {
    if (type === 'value') {
      const found = options[String(value)];
      if (found) return found;
    } else if (type === 'range') {
      if (value !== null && value >= (options.from ?? -Infinity) && value <= (options.to ?? Infinity)) return options.result;
    } else if (type === 'special') {
      const match = { null: value === null, nan: Number.isNaN(value), 'null+nan': value === null || Number.isNaN(value), empty: value === '', true: value === true, false: value === false }[options.match];
      if (match) return options.result;
    } else if (type === 'regex' && typeof value === 'string' && new RegExp(options.pattern.replace(/^\/|\/$/g, '')).test(value)) {
      return { ...options.result, text: options.result?.text ? value.replace(new RegExp(options.pattern.replace(/^\/|\/$/g, '')), options.result.text) : undefined };
    }
  }
  return undefined;
}

/** A panel's field options for one series or column: the defaults with the overrides that match it. */
export function fieldOptions(panel, { name, refId, type = 'number' }) {
  const field = structuredClone(panel.fieldConfig?.defaults ?? {});
  field.custom ??= {};
  for (const { matcher, properties = [] } of panel.fieldConfig?.overrides ?? []) {
    const { id, options } = matcher ?? {};
    const matches = (id === 'byName' && options === name) || (id === 'byFrameRefID' && options === refId) || (id === 'byType' && options === type)
      || (id === 'byRegexp' && new RegExp(String(options).replace(/^\/|\/$/g, '')).test(name)) || (id === 'byNames' && options?.names?.includes(name));
    if (!matches) continue;
    for (const { id: property, value } of properties) {
      if (property.startsWith('custom.')) field.custom[property.slice(7)] = value;
      else field[property] = value;
    }
  }
  return field;
}

const labelText = (labels) => Object.entries(labels).map(([name, value]) => `${name}="${value}"`).join(', ');

/** A series' name by the legend's format; without one, its metric with its labels. */
export function seriesName({ __name__: metric = '', ...labels }, legend, expr = '') {
  if (legend && legend !== '__auto') return legend.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, name) => (name === '__name__' ? metric : labels[name] ?? ''));
  const text = labelText(labels);
  return metric || text ? `${metric}${text ? `{${text}}` : ''}` : expr;
}

/** One number for a series' values (nulls and all), by Grafana's name of the calculation. */
export function reduce(values, how = 'lastNotNull') {
  const numbers = values.filter((value) => value !== null && value !== undefined && !Number.isNaN(value));
  if (!numbers.length) return null;
  const sum = () => numbers.reduce((total, value) => total + value, 0);
  switch (how) {
    case 'last': return values.at(-1) ?? null;
    case 'lastNotNull': return numbers.at(-1);
    case 'first': case 'firstNotNull': return numbers[0];
    case 'min': return numbers.reduce((least, value) => Math.min(least, value));
    case 'max': return numbers.reduce((most, value) => Math.max(most, value));
    case 'mean': return sum() / numbers.length;
    case 'sum': return sum();
    case 'count': return numbers.length;
    case 'range': return reduce(numbers, 'max') - reduce(numbers, 'min');
    case 'delta': case 'diff': return numbers.at(-1) - numbers[0];
    case 'median': return [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
    default: throw new Error(`calculation ${how} is not supported by the viewer`);
  }
}

/** Rows of instant vectors merged by their labels: { columns, rows }; one query's values are `Value`, several ones' `Value #A`, `Value #B`. */
export function mergeTable(answers) {
  const labels = [...new Set(answers.flatMap(({ result }) => result.flatMap(({ metric }) => Object.keys(metric))))].filter((name) => name !== '__name__');
  const valueNames = answers.map(({ refId }) => (answers.length > 1 ? `Value #${refId}` : 'Value'));
  const rows = new Map();
  answers.forEach(({ result }, index) => {
    for (const { metric, value } of result) {
      const key = JSON.stringify(labels.map((name) => metric[name] ?? ''));
      const row = rows.get(key) ?? Object.fromEntries(labels.map((name) => [name, metric[name] ?? '']));
      row[valueNames[index]] = Number(value[1]);
      rows.set(key, row);
    }
  });
  return { columns: [...labels, ...valueNames], rows: [...rows.values()] };
}

/** A table after its transformations; the viewer merges by labels anyway. Throws for those that it does not know. */
export function transform({ columns, rows }, transformations = []) {
  for (const { id, options = {}, disabled } of transformations) {
    if (disabled || ['merge', 'joinByField', 'joinByLabels', 'labelsToFields', 'timeSeriesTable'].includes(id)) continue;
    if (id === 'organize') {
      const { excludeByName = {}, indexByName = {}, renameByName = {} } = options;
      const kept = columns.filter((name) => !excludeByName[name]);
      const place = (name) => indexByName[name] ?? columns.length + columns.indexOf(name);
      kept.sort((a, b) => place(a) - place(b));
      const renamed = (name) => renameByName[name] || name;
      rows = rows.map((row) => Object.fromEntries(kept.map((name) => [renamed(name), row[name]])));
      columns = kept.map(renamed);
    } else if (id === 'filterFieldsByName') {
      const names = options.include?.names ?? columns;
      const pattern = options.include?.pattern && new RegExp(options.include.pattern.replace(/^\/|\/$/g, ''));
      columns = columns.filter((name) => (pattern ? pattern.test(name) : names.includes(name)));
    } else if (id === 'sortBy') {
      for (const { field, desc } of [...(options.sort ?? [])].reverse()) rows = sortRows(rows, field, desc);
    } else throw new Error(`transformation ${id} is not supported by the viewer`);
  }
  return { columns, rows };
}

/** Rows in the order of a column, numbers as numbers, missing values last. */
export function sortRows(rows, column, descending = false) {
  const sign = descending ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [one, other] = [a[column], b[column]];
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    return sign * (typeof one === 'number' && typeof other === 'number' ? one - other : String(one).localeCompare(String(other), 'en', { numeric: true }));
  });
}

/** Series on one axis of time: { times, columns }, null where a series has no value at a time. `results` are Prometheus' matrices. */
export function align(results, start, end, step) {
  const times = [];
  for (let at = start; at <= end + step / 1000; at += step) times.push(at);
  const columns = results.map(({ values }) => {
    const column = new Array(times.length).fill(null);
    for (const [at, value] of values) {
      const index = Math.round((at - start) / step);
      const number = Number(value);
      if (index >= 0 && index < column.length && Number.isFinite(number)) column[index] = number;
    }
    return column;
  });
  return { times, columns };
}

/** Markdown as blocks: [{ kind, level, items | text }], each text a list of spans { kind, text, href }. */
export function markdown(text) {
  const blocks = [];
  const spans = (line) => [...line.matchAll(/\*\*(.+?)\*\*|`([^`]+)`|\[([^\]]+)\]\(([^)\s]+)\)|([^*`[]+|[*`[])/g)].map(([, bold, code, label, href, plain]) => {
    if (bold) return { kind: 'b', text: bold };
    if (code) return { kind: 'code', text: code };
    if (label) return /^(https?:\/\/|\/(?!\/)|#)/.test(href) ? { kind: 'a', text: label, href } : { kind: 'text', text: label };
    return { kind: 'text', text: plain };
  });
  for (const part of String(text ?? '').split(/\n\s*\n/)) {
    let paragraph = [];
    let bullets = [];
    const close = () => {
      if (paragraph.length) blocks.push({ kind: 'p', spans: spans(paragraph.join(' ')) });
      if (bullets.length) blocks.push({ kind: 'ul', items: bullets.map(spans) });
      [paragraph, bullets] = [[], []];
    };
    for (const line of part.split('\n').map((one) => one.trim()).filter(Boolean)) {
      const heading = /^(#{1,6})\s+(.*)$/.exec(line);
      const bullet = /^[-*]\s+(.*)$/.exec(line);
      if (heading) {
        close();
        blocks.push({ kind: 'h', level: heading[1].length, spans: spans(heading[2]) });
      } else if (bullet) {
        if (paragraph.length) close();
        bullets.push(bullet[1]);
      } else if (bullets.length) bullets[bullets.length - 1] += ` ${line}`;
      else paragraph.push(line);
    }
    close();
  }
  return blocks;
}
