import { readFileSync, readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';

const FRESH_MS = 10000;
const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

/** Grafana's slug of a title. */
export const slug = (title) => title.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '') || '-';

/** Files below a folder, in order; `..data` and its like are how Kubernetes mounts a ConfigMap, and are passed over. */
function files(folder, ending, deep) {
  const found = [];
  for (const name of readdirSync(folder).sort()) {
    const file = path.join(folder, name);
    if (name.startsWith('..')) continue;
    if (statSync(file).isDirectory()) {
      if (deep) found.push(...files(file, ending, deep));
    } else if (ending.test(name)) found.push(file);
  }
  return found;
}

/** Read a provisioning file's list; what is wrong goes to `report(file, message)`. */
function entries(root, folder, key, report) {
  const found = [];
  let names = [];
  try {
    names = files(path.join(root, folder), /\.ya?ml$/, false);
  } catch (error) {
    report(path.join(root, folder), error.message);
  }
  for (const file of names) {
    try {
      const content = parse(readFileSync(file, 'utf8')) ?? {};
      if (content.apiVersion !== 1) throw new Error('apiVersion must be 1');
      if (!Array.isArray(content[key])) throw new Error(`${key} must be a list`);
      found.push(...content[key].map((entry) => ({ file, entry })));
    } catch (error) {
      report(file, error.message.split('\n', 1)[0]);
    }
  }
  return found;
}

function isHttp(text) {
  try {
    return ['http:', 'https:'].includes(new URL(text).protocol);
  } catch {
    return false;
  }
}

function datasource(entry) {
  if (!isObject(entry)) throw new Error('a datasource must be a mapping');
  const missing = ['name', 'uid', 'type', 'url'].filter((field) => typeof entry[field] !== 'string' || !entry[field]);
  if (missing.length) throw new Error(`datasource ${entry.name ?? entry.uid ?? ''} lacks ${missing.join(', ')}`);
  if (!isHttp(entry.url)) throw new Error(`datasource ${entry.name}: url must be an http URL, such as http://prometheus:9090`);
  return { uid: entry.uid, name: entry.name, type: entry.type, url: entry.url.replace(/\/+$/, ''), isDefault: entry.isDefault === true, jsonData: isObject(entry.jsonData) ? entry.jsonData : {} };
}

function dashboard(text) {
  const model = JSON.parse(text);
  if (!isObject(model)) throw new Error('a dashboard must be an object');
  const missing = ['uid', 'title'].filter((field) => typeof model[field] !== 'string' || !model[field]);
  if (missing.length) throw new Error(`the dashboard has no ${missing.join(' and no ')}`);
  if (!Array.isArray(model.panels)) throw new Error('panels must be a list');
  return model;
}

/** Read everything once: { datasources, dashboards: Map of uid to { model, folder, file }, problems: [{ file, message }] }. */
export function readProvisioning(root) {
  const problems = [];
  const report = (file, message) => problems.push({ file, message });
  const datasources = new Map();
  for (const { file, entry } of entries(root, 'datasources', 'datasources', report)) {
    try {
      const read = datasource(entry);
      if (datasources.has(read.uid)) throw new Error(`another datasource has the uid ${read.uid} too`);
      datasources.set(read.uid, read);
    } catch (error) {
      report(file, error.message);
    }
  }
  const dashboards = new Map();
  for (const { file, entry } of entries(root, 'dashboards', 'providers', report)) {
    const folder = entry?.options?.path;
    if (entry?.type !== 'file' || typeof folder !== 'string') {
      report(file, `provider ${entry?.name ?? ''}: type must be file, with options.path`);
      continue;
    }
    let names = [];
    try {
      names = files(folder, /\.json$/, true);
    } catch (error) {
      report(file, `provider ${entry.name ?? ''}: ${error.message}`);
    }
    for (const name of names) {
      try {
        const model = dashboard(readFileSync(name, 'utf8'));
        const other = dashboards.get(model.uid);
        if (other) throw new Error(`the dashboard's uid ${model.uid} is also that of ${other.file}`);
        dashboards.set(model.uid, { model, folder: entry.folder ?? '', file: name });
      } catch (error) {
        report(name, error.message);
      }
    }
  }
  return { datasources, dashboards, problems };
}

/** What is provisioned, read anew when it was asked for and is older than ten seconds; each problem is logged once. */
export function createCatalogue(root, log) {
  let current;
  let readAt = 0;
  let told = new Set();
  return () => {
    if (current && Date.now() - readAt < FRESH_MS) return current;
    current = readProvisioning(root);
    readAt = Date.now();
    for (const { file, message } of current.problems) {
      if (!told.has(`${file} ${message}`)) log.error('provisioning file is left out', { file, error: message });
    }
    told = new Set(current.problems.map(({ file, message }) => `${file} ${message}`));
    return current;
  };
}
