// A dashboard's variables: their options, their values, and what queries become with them.

export const ALL = '$__all';
const list = (value) => (Array.isArray(value) ? value : value === undefined || value === null ? [] : [value]).map(String);
const escapeRegex = (text) => text.replace(/[\\^$*+?.()|[\]{}/]/g, '\\$&');
// In a PromQL string a backslash is written as two.
const escapeInString = (text) => text.replace(/\\/g, '\\\\\\\\').replace(/[$^*{}[\]'+?.()|]/g, '\\\\$&');
const joined = (values, escape) => (values.length === 1 ? escape(values[0]) : `(${values.map(escape).join('|')})`);

/** The values of a variable that are in force, All spelled out. */
export function valuesOf(variable) {
  return variable.value.includes(ALL) ? variable.options.map(({ value }) => value) : variable.value;
}

function formatted(variable, how) {
  if (how === 'text') return variable.value.includes(ALL) ? 'All' : variable.value.join(' + ');
  if (variable.value.includes(ALL) && variable.allValue) return variable.allValue;
  const values = valuesOf(variable);
  switch (how) {
    case 'regex': return joined(values, escapeRegex);
    case 'pipe': return values.join('|');
    case 'csv': return values.join(',');
    case 'raw': return values.join(',');
    case 'json': return JSON.stringify(values);
    case 'doublequote': return values.map((value) => `"${value.replace(/"/g, '\\"')}"`).join(',');
    case 'singlequote': return values.map((value) => `'${value.replace(/'/g, "\\'")}'`).join(',');
    case undefined:
      if (!variable.multi && !variable.includeAll) return (values[0] ?? '').replace(/\\/g, '\\\\').replace(/"/g, '\\"');
      return values.length ? joined(values, escapeInString) : '';
    default: throw new Error(`format ${how} of variable ${variable.name} is not supported by the viewer`);
  }
}

/** Put variables into a text: $name, ${name}, ${name:format}, [[name]]; `builtin` holds $__interval and its like. Unknown names stay. */
export function interpolate(text, variables, builtin = {}) {
  return String(text ?? '').replace(/\$(\w+)|\$\{(\w+)(?::(\w+))?\}|\[\[(\w+)(?::(\w+))?\]\]/g, (whole, plain, braced, format, square, squareFormat) => {
    const name = plain ?? braced ?? square;
    if (Object.hasOwn(builtin, name)) return builtin[name];
    const variable = variables.get(name);
    return variable ? formatted(variable, format ?? squareFormat) : whole;
  });
}

/** What a query variable asks: { label, metric } of label_values(metric, label). Throws for other functions. */
export function labelValues(query) {
  const text = String(typeof query === 'object' && query !== null ? query.query ?? '' : query ?? '').trim();
  const found = /^label_values\((?:(.+),)?\s*([a-zA-Z_]\w*)\s*\)$/s.exec(text);
  if (!found) throw new Error(`the viewer knows label_values(label) and label_values(metric, label), not: ${text || 'an empty query'}`);
  return { metric: found[1]?.trim(), label: found[2] };
}

function byRegex(values, regex) {
  const [, source, flags] = /^\/(.*)\/([gimsuy]*)$/s.exec(regex) ?? [undefined, regex, ''];
  const pattern = new RegExp(source, flags.replace('g', ''));
  return values.map((value) => pattern.exec(value)).filter(Boolean).map((match) => match.groups?.value ?? match[1] ?? match[0]);
}

function sorted(values, sort) {
  if (!sort) return values;
  const compare = {
    1: (a, b) => (a < b ? -1 : 1), 3: (a, b) => parseFloat(a) - parseFloat(b), 5: (a, b) => a.toLowerCase().localeCompare(b.toLowerCase()),
    7: (a, b) => a.localeCompare(b, 'en', { numeric: true }),
  }[sort % 2 ? sort : sort - 1] ?? ((a, b) => (a < b ? -1 : 1));
  const inOrder = [...values].sort(compare);
  return sort % 2 ? inOrder : inOrder.reverse();
}

function customOptions(query) {
  return (String(query ?? '').match(/(?:\\,|[^,])+/g) ?? []).map((part) => {
    const text = part.replaceAll('\\,', ',').trim();
    const [, label, value] = /^(.+?)\s:\s(.+)$/.exec(text) ?? [undefined, text, text];
    return { text: label, value };
  });
}

/** The options of a variable; `before` are the variables above it, `ask(model, before)(label, metric)` gives a label's values, `datasources` are all of them. */
async function optionsOf(model, before, ask, datasources) {
  const plain = (values) => [...new Set(values)].map((value) => ({ text: value, value }));
  switch (model.type) {
    case 'query': {
      const { label, metric } = labelValues(model.query ?? model.definition);
      let values = await ask(model, before)(label, metric && interpolate(metric, before));
      if (model.regex) values = byRegex(values, interpolate(model.regex, before));
      return plain(sorted(values, model.sort));
    }
    case 'custom': case 'interval': return customOptions(model.query);
    case 'constant': case 'textbox': return plain([String(model.query ?? '')]);
    case 'datasource': return datasources.filter(({ type }) => type === model.query).map(({ name, uid }) => ({ text: name, value: uid }));
    default: throw new Error(`type ${model.type} is not supported by the viewer`);
  }
}

/** Resolve a dashboard's variables in order: a Map of name to variable; `wanted(name)` gives the values asked for, if any. */
export async function resolve(models, { ask, datasources, wanted }) {
  const variables = new Map();
  for (const model of models) {
    const variable = { name: model.name, label: model.label || model.name, multi: Boolean(model.multi), includeAll: Boolean(model.includeAll), allValue: model.allValue || '', hide: model.hide ?? 0, type: model.type, options: [], value: [] };
    try {
      variable.options = await optionsOf(model, variables, ask, datasources);
    } catch (error) {
      variable.error = error.message;
    }
    const known = (value) => model.type === 'textbox' || (value === ALL && variable.includeAll) || variable.options.some((option) => option.value === value || (model.type === 'datasource' && option.text === value));
    const kept = [wanted(model.name) ?? [], list(model.current?.value)].map((values) => values.filter(known)).find((values) => values.length);
    const first = variable.includeAll ? [ALL] : variable.options.slice(0, 1).map(({ value }) => value);
    variable.value = kept ? (kept.includes(ALL) ? [ALL] : variable.multi ? kept : kept.slice(0, 1)) : first;
    variables.set(model.name, variable);
  }
  return variables;
}
