// Numbers as Grafana shows them, by its names of units.

const fixed = (value, decimals) => {
  if (!Number.isFinite(value)) return value > 0 ? '∞' : value < 0 ? '-∞' : 'NaN';
  return value.toFixed(decimals ?? autoDecimals(value)).replace(/^-(0(?:\.0+)?)$/, '$1');
};

/** Decimals that Grafana gives a value when none are asked for: three digits are to be read. */
export function autoDecimals(value) {
  if (value % 1 === 0) return 0;
  return Math.min(10, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
}

function scaled(factor, names, first = 0) {
  return (value, decimals) => {
    let step = first;
    let rest = value;
    if (!Number.isFinite(value)) return fixed(value);
    for (; Math.abs(rest) >= factor && step < names.length - 1; step += 1) rest /= factor;
    // 999.96 shown with one decimal would be 1000.0 of the smaller unit.
    if (step < names.length - 1 && Math.abs(Number(fixed(rest, decimals))) >= factor) {
      rest /= factor;
      step += 1;
    }
    return `${fixed(rest, decimals)}${names[step]}`;
  };
}

const SI = ['', 'k', 'M', 'G', 'T', 'P', 'E'];
const IEC = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];
const si = (unit, first = 0) => scaled(1000, SI.map((prefix) => ` ${prefix}${unit}`), first);
const iec = (unit, first = 0) => scaled(1024, IEC.map((prefix) => ` ${prefix}${unit}`), first);
const count = (unit) => scaled(1000, ['', 'K', 'M', 'B', 'T'].map((suffix) => `${suffix} ${unit}`));

const SECONDS = [[1e-6, 1e-9, ' ns'], [1e-3, 1e-6, ' µs'], [1, 1e-3, ' ms'], [60, 1, ' s'], [3600, 60, ' min'], [86400, 3600, ' hour'], [604800, 86400, ' day'], [31536000, 604800, ' week'], [Infinity, 31536000, ' year']];

function time(inSeconds) {
  return (value, decimals) => {
    const seconds = value * inSeconds;
    if (!seconds) return `${fixed(0, decimals)}${SECONDS.find(([, size]) => size >= inSeconds * 0.999)[2]}`;
    if (!Number.isFinite(seconds)) return fixed(seconds);
    const [, size, name] = SECONDS.find(([limit]) => Math.abs(seconds) < limit);
    const number = fixed(seconds / size, decimals);
    return `${number}${name}${/ (hour|day|week|year)/.test(name) && Number(number) !== 1 ? 's' : ''}`;
  };
}

const clock = (value) => {
  const seconds = Math.round(Math.abs(value));
  const [days, rest] = [Math.floor(seconds / 86400), seconds % 86400];
  const two = (number) => String(Math.floor(number)).padStart(2, '0');
  return `${value < 0 ? '-' : ''}${days ? `${days} d ` : ''}${two(rest / 3600)}:${two((rest % 3600) / 60)}:${two(rest % 60)}`;
};
const words = ([yes, no]) => (value) => (value === 0 ? no : yes);
const two = (number) => String(number).padStart(2, '0');

/** A moment (ms) as `2026-11-25 03:22:40`, in the browser's time zone. */
export function moment(ms) {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return 'no date';
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

function ago(ms) {
  const seconds = (ms - Date.now()) / 1000;
  const text = time(1)(Math.abs(seconds), 0);
  return seconds < 0 ? `${text} ago` : `in ${text}`;
}

const UNITS = {
  none: fixed, string: (value) => String(value), short: scaled(1000, ['', ' K', ' Mil', ' Bil', ' Tri', ' Quadr']), sishort: scaled(1000, SI.map((prefix) => (prefix ? ` ${prefix}` : ''))),
  locale: (value, decimals) => value.toLocaleString('en-US', { maximumFractionDigits: decimals ?? 2 }),
  percent: (value, decimals) => `${fixed(value, decimals)}%`, percentunit: (value, decimals) => `${fixed(value * 100, decimals)}%`,
  bytes: iec('B'), decbytes: si('B'), kbytes: iec('B', 1), mbytes: iec('B', 2), gbytes: iec('B', 3), bits: iec('b'), decbits: si('b'),
  Bps: si('B/s'), binBps: iec('B/s'), bps: si('b/s'), binbps: iec('b/s'), KBs: si('B/s', 1), MBs: si('B/s', 2), pps: si('p/s'), hertz: si('Hz'),
  ns: time(1e-9), µs: time(1e-6), us: time(1e-6), ms: time(1e-3), s: time(1), m: time(60), h: time(3600), d: time(86400),
  dtdurations: clock, dthms: clock, clocks: clock, dtdurationms: (value) => clock(value / 1000),
  dateTimeAsIso: moment, dateTimeAsLocal: moment, dateTimeFromNow: ago,
  bool: words(['True', 'False']), bool_yes_no: words(['Yes', 'No']), bool_on_off: words(['On', 'Off']),
  reqps: count('req/s'), ops: count('ops/s'), rps: count('rd/s'), wps: count('wr/s'), iops: count('io/s'), eps: count('evt/s'), mps: count('msg/s'), cps: count('c/s'), recps: count('rec/s'), rowsps: count('rows/s'),
  opm: count('ops/m'), cpm: count('c/m'), reqpm: count('req/m'), cores: fixed,
};

/** Whether the viewer knows a unit; others are shown as Grafana does: the number, then the unit's name. */
export const knows = (unit) => unit in UNITS;

/** A number with its unit. */
export function format(value, unit = 'none', decimals = undefined) {
  if (value === null || value === undefined) return '-';
  const [, kind, text] = /^(suffix|prefix|time):(.*)$/.exec(unit) ?? [];
  if (kind === 'suffix') return `${fixed(value, decimals)}${text}`;
  if (kind === 'prefix') return `${text}${fixed(value, decimals)}`;
  if (kind === 'time') return moment(value);
  return Object.hasOwn(UNITS, unit) ? UNITS[unit](value, decimals) : `${fixed(value, decimals)} ${unit}`;
}
