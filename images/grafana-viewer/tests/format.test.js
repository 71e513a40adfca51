// What the browser makes of numbers, variables and answers; nothing here needs a browser.
import assert from 'node:assert/strict';
import test from 'node:test';
import { builtins, instant, seconds, stepFor } from '../src/public/query.js';
import { rowsOf } from '../src/public/spans.js';
import { format } from '../src/public/units.js';
import { align, fieldOptions, mapped, markdown, mergeTable, reduce, seriesName, thresholdColour, thresholdLines, transform } from '../src/public/values.js';
import { interpolate, labelValues, resolve } from '../src/public/variables.js';

for (const [value, unit, decimals, text] of [
  [1234, 'short', undefined, '1.23 K'], [12, 'short', undefined, '12'], [2500000, 'short', 1, '2.5 Mil'], [999.96, 'short', 1, '1.0 K'], [0.1234, 'none', undefined, '0.123'], [-0.004, 'none', 1, '0.0'],
  [0.4567, 'percentunit', undefined, '45.7%'], [0.5, 'percentunit', 0, '50%'], [99.95, 'percent', 1, '100.0%'], [42, 'percent', undefined, '42%'],
  [1536, 'bytes', undefined, '1.50 KiB'], [5 * 1024 ** 3, 'bytes', undefined, '5 GiB'], [1500, 'decbytes', undefined, '1.50 kB'], [2300, 'Bps', undefined, '2.30 kB/s'], [2048, 'binBps', undefined, '2 KiB/s'],
  [0.0042, 's', undefined, '4.20 ms'], [0.5, 's', undefined, '500 ms'], [90, 's', undefined, '1.50 min'], [86400, 's', undefined, '1 day'], [172800, 's', undefined, '2 days'], [1500, 'ms', undefined, '1.50 s'], [0, 'ms', undefined, '0 ms'], [0, 's', undefined, '0 s'],
  [12.3, 'reqps', undefined, '12.3 req/s'], [12300, 'ops', 1, '12.3K ops/s'], [3, 'cps', undefined, '3 c/s'], [1, 'bool_yes_no', undefined, 'Yes'], [90061, 'dtdurations', undefined, '1 d 01:01:01'],
  [5, 'suffix:pods', undefined, '5pods'], [5, 'widgets', undefined, '5 widgets'], [5, 'constructor', undefined, '5 constructor'], [null, 's', undefined, '-'],
]) {
  test(`${value} ${unit} ${decimals ?? ''} reads ${text}`, () => assert.equal(format(value, unit, decimals), text));
}

const variable = (name, value, more = {}) => [name, { name, value, options: ['a.b', 'c'].map((one) => ({ text: one, value: one })), multi: true, includeAll: true, ...more }];

test('variables are put into queries as Grafana does it', () => {
  const some = new Map([variable('pod', ['a.b', 'c']), variable('one', ['a.b']), variable('all', ['$__all']), variable('wide', ['$__all'], { allValue: '.*' }), variable('job', ['say "x"'], { multi: false, includeAll: false })]);
  const put = (text) => interpolate(text, some, { __interval: '15s', __rate_interval: '1m' });
  assert.equal(put('up{pod=~"$pod"}'), 'up{pod=~"(a\\\\.b|c)"}');
  assert.equal(put('up{pod=~"[[one]]"}'), 'up{pod=~"a\\\\.b"}');
  assert.equal(put('$all ${wide} ${all:text}'), '(a\\\\.b|c) .* All');
  assert.equal(put('${pod:regex} ${pod:pipe} ${pod:csv} ${pod:json} ${pod:singlequote}'), '(a\\.b|c) a.b|c a.b,c ["a.b","c"] \'a.b\',\'c\'');
  assert.equal(put('up{job="$job"}'), 'up{job="say \\"x\\""}');
  assert.equal(put('rate(x[$__rate_interval]) $unknown $1'), 'rate(x[1m]) $unknown $1');
  assert.throws(() => put('${pod:glob}'), /format glob of variable pod/);
});

test('label_values in both forms, and nothing else', () => {
  assert.deepEqual(labelValues('label_values(job)'), { metric: undefined, label: 'job' });
  assert.deepEqual(labelValues({ query: 'label_values(up{a="x,y", b=~"$v"}, pod)', refId: 'A' }), { metric: 'up{a="x,y", b=~"$v"}', label: 'pod' });
  assert.throws(() => labelValues('query_result(up)'), /knows label_values/);
});

test('variables are resolved in order, with what the address asks for', async () => {
  const asked = [];
  const ask = () => async (label, metric) => {
    asked.push([label, metric]);
    return label === 'job' ? ['web', 'api'] : ['pod-10', 'pod-9', 'other'];
  };
  const models = [
    { name: 'source', type: 'datasource', query: 'prometheus', current: {} },
    { name: 'job', type: 'query', query: 'label_values(up, job)', sort: 1, current: { value: 'gone' } },
    { name: 'pod', type: 'query', query: { query: 'label_values(up{job="$job"}, pod)' }, regex: '/pod-(\\d+)/', sort: 3, multi: true, includeAll: true, current: { value: ['$__all'] } },
    { name: 'q', type: 'custom', query: 'half : 0.5,0.95', current: { value: '0.95' } },
    { name: 'c', type: 'constant', query: 'fixed' },
    { name: 'bad', type: 'query', query: 'metrics(x)' },
  ];
  const found = await resolve(models, { ask, datasources: [{ type: 'loki', uid: 'l', name: 'L' }, { type: 'prometheus', uid: 'p', name: 'P' }], wanted: (name) => (name === 'q' ? ['0.5'] : undefined) });
  assert.deepEqual([...found.values()].map(({ value }) => value), [['p'], ['api'], ['$__all'], ['0.5'], ['fixed'], []]);
  assert.deepEqual(found.get('pod').options.map(({ value }) => value), ['9', '10']);
  assert.deepEqual(asked, [['job', 'up'], ['pod', 'up{job="api"}']]);
  assert.match(found.get('bad').error, /label_values/);
});

test('times and steps', () => {
  assert.equal(instant('now-1h', 7200000), 3600000);
  assert.equal(instant('1700000000000', 0), 1700000000000);
  assert.throws(() => instant('yesterday-ish', 0), /is no time/);
  assert.equal(seconds('1m'), 60);
  assert.throws(() => seconds('soon'), /is no duration/);
  assert.equal(stepFor(3600, 800, 15), 15);
  assert.equal(stepFor(7 * 86400, 800, 15), 900);
  assert.deepEqual(builtins({ from: 0, to: 3600000 }, 15, 15), { __interval: '15s', __interval_ms: '15000', __rate_interval: '60s', __range: '3600s', __range_s: '3600', __range_ms: '3600000', __from: '0', __to: '3600000' });
});

test('thresholds, mappings and overrides', () => {
  const field = { thresholds: { mode: 'absolute', steps: [{ value: null, color: 'green' }, { value: 80, color: 'red' }] } };
  assert.deepEqual([0, 79.9, 80, 200].map((value) => thresholdColour(value, field)), ['#73bf69', '#73bf69', '#f2495c', '#f2495c']);
  assert.deepEqual(thresholdLines({ thresholds: { ...field.thresholds, mode: 'percentage' }, min: 0, max: 10 }), [{ value: 8, color: '#f2495c' }]);
  const mappings = [{ type: 'value', options: { 1: { text: 'up', color: 'green' } } }, { type: 'range', options: { from: 2, to: 5, result: { text: 'some' } } }, { type: 'special', options: { match: 'null', result: { text: 'none' } } }];
  assert.deepEqual([1, 3, null, 9].map((value) => mapped(value, mappings)?.text), ['up', 'some', 'none', undefined]);
  const panel = { fieldConfig: { defaults: { unit: 's', custom: { lineWidth: 2 } }, overrides: [{ matcher: { id: 'byName', options: 'errors' }, properties: [{ id: 'unit', value: 'short' }, { id: 'custom.lineWidth', value: 4 }] }] } };
  assert.deepEqual(fieldOptions(panel, { name: 'errors' }), { unit: 'short', custom: { lineWidth: 4 } });
  assert.deepEqual(fieldOptions(panel, { name: 'rest' }), { unit: 's', custom: { lineWidth: 2 } });
});

test('names of series', () => {
  const labels = { __name__: 'up', job: 'api', pod: 'a' };
  assert.equal(seriesName(labels, '{{job}} {{ pod }}{{gone}}'), 'api a');
  assert.equal(seriesName(labels, '__auto'), 'up{job="api", pod="a"}');
  assert.equal(seriesName({}, '', 'sum(up)'), 'sum(up)');
});

test('values are reduced, aligned and merged', () => {
  assert.deepEqual(['lastNotNull', 'min', 'max', 'mean', 'sum'].map((how) => reduce([1, null, 3, null], how)), [3, 1, 3, 2, 4]);
  assert.equal(reduce([null], 'sum'), null);
  assert.deepEqual(align([{ values: [[30, '2'], [60, 'NaN']] }, { values: [[45, '1']] }], 30, 60, 15), { times: [30, 45, 60], columns: [[2, null, null], [null, 1, null]] });
  const table = mergeTable([
    { refId: 'A', result: [{ metric: { __name__: 'x', pod: 'a' }, value: [0, '1'] }, { metric: { pod: 'b' }, value: [0, '2'] }] },
    { refId: 'B', result: [{ metric: { pod: 'a' }, value: [0, '3'] }] },
  ]);
  assert.deepEqual(table, { columns: ['pod', 'Value #A', 'Value #B'], rows: [{ pod: 'a', 'Value #A': 1, 'Value #B': 3 }, { pod: 'b', 'Value #A': 2 }] });
  const organized = transform(table, [{ id: 'organize', options: { excludeByName: { Time: true, 'Value #B': true }, renameByName: { 'Value #A': 'CPU' }, indexByName: { 'Value #A': 0, pod: 1 } } }]);
  assert.deepEqual(organized, { columns: ['CPU', 'pod'], rows: [{ CPU: 1, pod: 'a' }, { CPU: 2, pod: 'b' }] });
  assert.throws(() => transform(table, [{ id: 'groupBy' }]), /groupBy is not supported/);
});

test('markdown is plain blocks, and a link goes nowhere dangerous', () => {
  const [heading, text, items] = markdown('# Title\nSome **bold** `code` [a](https://x.y/z) [b](javascript:alert(1))\n\n- one\n- two');
  assert.deepEqual([heading.kind, heading.spans[0].text], ['h', 'Title']);
  assert.deepEqual(text.spans.filter(({ kind }) => kind !== 'text').map(({ kind, text: shown }) => `${kind} ${shown}`), ['b bold', 'code code', 'a a']);
  assert.deepEqual(items.items.map(([{ text: shown }]) => shown), ['one', 'two']);
});

test('a typed text is put into LogsQL in quotes', () => {
  const typed = (value) => interpolate('*:i(${search:doublequote}*)', new Map([variable('search', [value], { multi: false, includeAll: false })]));
  assert.equal(typed('req-1'), '*:i("req-1"*)');
  assert.equal(typed(''), '*:i(""*)');
  assert.equal(typed('a" or *'), '*:i("a\\" or *"*)');
});

const span = (spanID, parent, startTime, more = {}) => ({ spanID, operationName: `do ${spanID}`, processID: 'p1', startTime, duration: 2000, references: parent ? [{ refType: 'CHILD_OF', spanID: parent }] : [], ...more });

test('spans of a trace: children behind their parent, by time, and none is lost', () => {
  const failed = { tags: [{ key: 'error', value: true }, { key: 'otel.status_description', value: 'away' }] };
  const rows = rowsOf({
    processes: { p1: { serviceName: 'api' } },
    spans: [span('late', 'root', 9000), span('child', 'root', 3000, failed), span('root', '', 1000), span('inner', 'child', 4000), span('orphan', 'gone', 8000), span('x', 'y', 6000), span('y', 'x', 7000)],
  });
  assert.deepEqual(rows.map(({ depth, id }) => [depth, id]), [[0, 'root'], [1, 'child'], [2, 'inner'], [1, 'late'], [0, 'orphan'], [0, 'x'], [1, 'y']]);
  assert.deepEqual([rows[1].at, rows[1].ms, rows[1].error, rows[1].service], [2, 2, 'away', 'api']);
  assert.equal(rows[0].error, '');
});
