// Drawing: elements, SVG, and time series by uPlot.
import uPlot from './uPlot.esm.js';
import { format, moment } from './units.js';
import { reduce, thresholdLines } from './values.js';

const FONT = '12px Inter, "Helvetica Neue", Arial, sans-serif';
// Marks of axes in bytes lie at powers of two.
const BINARY = Array.from({ length: 60 }, (_, index) => 2 ** (index - 2));
const GRID = 'rgba(204, 204, 220, 0.08)';
const TEXT = '#9fa7b3';

/** A new element: properties, `style` and `data` objects, and children (texts are never HTML). */
export function make(tag, { style = {}, data = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  Object.assign(element.dataset, data);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const point = (angle, radius) => `${(50 + radius * Math.cos(angle)).toFixed(2)} ${(50 + radius * Math.sin(angle)).toFixed(2)}`;

function arc(from, to, radius, width, color) {
  const [start, end] = [from, to].map((share) => Math.PI * (0.8 + 1.4 * share));
  return svg('path', { d: `M ${point(start, radius)} A ${radius} ${radius} 0 ${end - start > Math.PI ? 1 : 0} 1 ${point(end, radius)}`, fill: 'none', stroke: color, 'stroke-width': width });
}

/** Grafana's gauge: an arc filled up to `share` (0 to 1), with the thresholds around it ([{ from, to, color }], shares too). */
export function gauge(share, color, bands, text) {
  const filled = Math.min(1, Math.max(0, share));
  const label = svg('text', { x: 50, y: 56, 'text-anchor': 'middle', 'font-size': text.length > 8 ? 11 : 15, 'font-weight': 600, fill: color }, text);
  return svg('svg', { viewBox: '0 4 100 78', class: 'gauge' }, arc(0, 1, 38, 11, '#22252b'), ...(filled > 0.001 ? [arc(0, filled, 38, 11, color)] : []),
    ...bands.filter(({ from, to }) => to > from).map((band) => arc(band.from, band.to, 45.5, 1.8, band.color)), label);
}

/** A line with its area, as wide and high as its element. */
export function sparkline(values, color) {
  const [least, most] = [reduce(values, 'min'), reduce(values, 'max')];
  if (least === null || values.length < 2) return null;
  const points = values.map((value, index) => [(index / (values.length - 1)) * 100, value === null ? null : 38 - ((value - least) / (most - least || 1)) * 34]).filter(([, y]) => y !== null);
  const line = points.map(([x, y], index) => `${index ? 'L' : 'M'}${x.toFixed(2)} ${y.toFixed(2)}`).join('');
  return svg('svg', { viewBox: '0 0 100 40', preserveAspectRatio: 'none', class: 'sparkline' },
    svg('path', { d: `${line}L${points.at(-1)[0].toFixed(2)} 40L${points[0][0].toFixed(2)} 40Z`, fill: color, 'fill-opacity': 0.18 }),
    svg('path', { d: line, fill: 'none', stroke: color, 'stroke-width': 1.5, 'vector-effect': 'non-scaling-stroke' }));
}

const faint = (color, opacity) => (/^#[0-9a-f]{6}$/i.test(color) ? `${color}${Math.round(opacity * 2.55).toString(16).padStart(2, '0')}` : color);

/** Columns as drawn: stacked ones are sums of those below them; a bar that is not there has no height, so that the next one stands on it. */
export function stack(series) {
  const sums = new Map();
  return series.map(({ values, field }) => {
    const { mode, group = 'A' } = field.custom.stacking ?? {};
    if (mode !== 'normal' && mode !== 'percent') return values;
    const below = sums.get(group) ?? new Array(values.length).fill(0);
    const total = values.map((value, index) => below[index] + (value ?? 0));
    sums.set(group, total);
    return total.map((value, index) => (values[index] === null && field.custom.drawStyle !== 'bars' ? null : value));
  });
}

function asShares(series) {
  if (!series.some(({ field }) => field.custom.stacking?.mode === 'percent')) return series;
  const totals = series[0].values.map((_, index) => series.reduce((sum, { values }) => sum + Math.abs(values[index] ?? 0), 0));
  return series.map((one) => ({ ...one, values: one.values.map((value, index) => (value === null ? null : value / (totals[index] || 1))), field: { ...one.field, unit: 'percentunit' } }));
}

function tooltipOf(series, element) {
  return (plot) => {
    const { idx, left, top } = plot.cursor;
    if (idx === null || idx === undefined || left < 0) {
      element.hidden = true;
      return;
    }
    const rows = series.filter((one, index) => plot.series[index + 1].show && one.values[idx] !== null);
    element.replaceChildren(make('b', {}, moment(plot.data[0][idx] * 1000)), ...rows.slice(0, 20).map((one) => make('div', {},
      make('i', { className: 'swatch', style: { background: one.color } }), make('span', {}, one.name), make('b', {}, format(one.values[idx], one.field.unit, one.field.decimals)))),
    ...(rows.length > 20 ? [make('div', {}, `and ${rows.length - 20} more`)] : []));
    element.hidden = !rows.length;
    const box = plot.over.getBoundingClientRect();
    const { offsetWidth, offsetHeight } = element;
    element.style.left = `${box.left + left + 14 + offsetWidth > window.innerWidth ? box.left + left - offsetWidth - 14 : box.left + left + 14}px`;
    element.style.top = `${Math.max(4, Math.min(box.top + top + 14, window.innerHeight - offsetHeight - 4))}px`;
  };
}

/** Time series ([{ name, values, color, field }] over `times`, s) in an element; returns the plot. `onZoom(from, to)` takes ms. */
export function timeSeries(element, { times, series: given, range, tooltip, onZoom }) {
  const series = asShares(given);
  const units = [...new Set(series.map(({ field }) => field.unit ?? 'none'))];
  const ofUnit = (unit) => series.find(({ field }) => (field.unit ?? 'none') === unit).field;
  const scales = Object.fromEntries(units.map((unit) => {
    const { min, max, custom } = ofUnit(unit);
    return [unit, {
      range: (plot, low, high) => {
        if (low === null) return [min ?? 0, max ?? 1];
        const [least, most] = [Math.min(low, custom.axisSoftMin ?? low), Math.max(high, custom.axisSoftMax ?? high)];
        // Quantities start at zero unless they are far from it.
        const [from, to] = uPlot.rangeNum(least >= 0 && least < most * 0.7 ? 0 : least, most === least ? least + (Math.abs(least) || 1) * 0.1 : most, 0.1, true);
        return [min ?? (least >= 0 ? Math.max(0, from) : from), max ?? to];
      },
    }];
  }));
  const width = (plot, values, axis) => Math.ceil(Math.max(28, ...(values ?? []).map((text) => String(text).length * 6.6)) + 14);
  const axes = [{ stroke: TEXT, font: FONT, grid: { stroke: GRID, width: 1 }, ticks: { show: false }, size: 28, space: 80, values: (plot, splits, _, space, step) => splits.map((at) => clockText(at, step)) },
    ...units.map((unit, index) => ({
      scale: unit, side: index % 2 ? 1 : 3, stroke: TEXT, font: FONT, size: width, gap: 4, space: 32, grid: { show: !index, stroke: GRID, width: 1 }, ticks: { show: false },
      ...(/^(k|m|g)?bytes$|^bin|^bits$/.test(unit) && { incrs: BINARY }),
      values: (plot, splits) => splits.map((value) => format(value, unit, ofUnit(unit).decimals).replace(/\.(\d*?)0+(?!\d)/, (_, kept) => (kept ? `.${kept}` : ''))),
    }))];
  const lines = series.map(({ name, color, field }) => {
    const { drawStyle, fillOpacity = 0, lineWidth = 1, lineInterpolation, spanNulls, lineStyle } = field.custom;
    const paths = drawStyle === 'bars' ? uPlot.paths.bars({ size: [0.8, 40] }) : lineInterpolation === 'stepAfter' ? uPlot.paths.stepped({ align: 1 })
      : lineInterpolation === 'smooth' ? uPlot.paths.spline() : uPlot.paths.linear();
    return {
      label: name, scale: field.unit ?? 'none', stroke: color, width: ['bars', 'points'].includes(drawStyle) ? 0 : Math.max(lineWidth, 1) * 1.25, fill: fillOpacity ? faint(color, fillOpacity) : undefined,
      paths, spanGaps: Boolean(spanNulls), dash: lineStyle?.fill === 'dash' ? lineStyle.dash ?? [8, 6] : undefined, points: drawStyle === 'bars' ? { show: false } : drawStyle === 'points' ? { show: true, size: 5 } : { show: soloPoints, filter: soloPoints, size: 4 },
    };
  });
  function drawThresholds(plot) {
    for (const unit of units) {
      const field = ofUnit(unit);
      const mode = field.custom.thresholdsStyle?.mode ?? 'off';
      if (mode === 'off') continue;
      const { left, top, width: wide, height } = plot.bbox;
      const [least, most] = [plot.scales[unit].min, plot.scales[unit].max];
      const passed = thresholdLines({ ...field, min: field.min ?? least, max: field.max ?? most });
      plot.ctx.save();
      passed.forEach(({ value, color }, index) => {
        const next = Math.min(passed[index + 1]?.value ?? most, most);
        if (/area/.test(mode) && value < most) {
          const [y, above] = [plot.valToPos(Math.max(value, least), unit, true), plot.valToPos(next, unit, true)];
          plot.ctx.fillStyle = faint(color, 10);
          plot.ctx.fillRect(left, above, wide, y - above);
        }
        if (value < least || value > most || mode === 'area') return;
        const y = plot.valToPos(value, unit, true);
        plot.ctx.strokeStyle = color;
        plot.ctx.lineWidth = 1.5 * devicePixelRatio;
        plot.ctx.setLineDash(/dashed/.test(mode) ? [10, 8] : []);
        plot.ctx.beginPath();
        plot.ctx.moveTo(left, Math.min(Math.max(y, top), top + height));
        plot.ctx.lineTo(left + wide, Math.min(Math.max(y, top), top + height));
        plot.ctx.stroke();
      });
      plot.ctx.restore();
    }
  }
  const drawn = stack(series);
  const stacked = series.filter(({ field }) => ['normal', 'percent'].includes(field.custom.stacking?.mode));
  // Filled down to the series below, so that colours do not mix.
  const bands = stacked.slice(1).map((one, index) => ({ series: [series.indexOf(one) + 1, series.indexOf(stacked[index]) + 1] }));
  return new uPlot({
    width: element.clientWidth, height: element.clientHeight, padding: [10, units.length > 1 ? 0 : 12, 0, 0],
    legend: { show: false }, cursor: { points: { size: 6 }, drag: { x: true, y: false, setScale: false } },
    scales: { x: { time: true, range: () => [range.from / 1000, range.to / 1000] }, ...scales }, axes, bands,
    series: [{}, ...lines],
    hooks: {
      draw: [drawThresholds], setCursor: [tooltipOf(series, tooltip)],
      setSelect: [(plot) => {
        if (plot.select.width > 4) onZoom(...[plot.select.left, plot.select.left + plot.select.width].map((x) => Math.round(plot.posToVal(x, 'x') * 1000)));
      }],
    },
  }, [times, ...drawn], element);
}

/** Points for values that have no neighbour, which a line would not show. */
function soloPoints(plot, index) {
  const values = plot.data[index];
  const alone = [];
  values.forEach((value, at) => {
    if (value !== null && (values[at - 1] ?? null) === null && (values[at + 1] ?? null) === null) alone.push(at);
  });
  return alone;
}

const two = (number) => String(number).padStart(2, '0');

/** An axis' text for a moment (s), given the distance of its marks. */
export function clockText(at, step) {
  const date = new Date(at * 1000);
  const day = `${two(date.getMonth() + 1)}/${two(date.getDate())}`;
  const time = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (step >= 86400) return day;
  return step < 60 ? `${time}:${two(date.getSeconds())}` : step >= 21600 ? `${day} ${time}` : time;
}
