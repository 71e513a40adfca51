// Traces by OpenTelemetry: a span of each request and of each call that it makes. The same file in api/ and web/ (a test compares them).
// Nothing that a client sent goes into a span but its request id, so no error's message either, which may quote it: the log line of the same trace has it.
import { hostname } from 'node:os';
import { INVALID_SPAN_CONTEXT, ROOT_CONTEXT, SpanKind, SpanStatusCode, context, propagation, trace } from '@opentelemetry/api';

const SAMPLER = 'parentbased_traceidratio';
// Ends before run() in service.js gives up waiting.
const EXPORT_TIMEOUT_MS = 2500;
const EXPORTS_AT_ONCE = 5;
const UNSAMPLED = trace.wrapSpanContext(INVALID_SPAN_CONTEXT);

let tracer;

/** What OpenTelemetry's variables say; undefined without an endpoint. Throws one error that names every wrong variable. */
export function tracingSettings(env) {
  const endpoint = env.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (!endpoint) return undefined;
  const ratio = env.OTEL_TRACES_SAMPLER_ARG || '1';
  const problems = [];
  if (!/^https?:\/\//.test(endpoint) || !URL.canParse(endpoint)) problems.push('OTEL_EXPORTER_OTLP_ENDPOINT must be an http or https URL');
  if ((env.OTEL_TRACES_SAMPLER || SAMPLER) !== SAMPLER) problems.push(`OTEL_TRACES_SAMPLER must be ${SAMPLER}`);
  if (!ratio.trim() || !(Number(ratio) >= 0 && Number(ratio) <= 1)) problems.push('OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1');
  if (problems.length) throw new Error(`environment variable ${problems.join('; ')}`);
  return { url: `${endpoint.replace(/\/+$/, '')}/v1/traces`, ratio: Number(ratio), name: env.OTEL_SERVICE_NAME };
}

/** Say once that spans are not taken, and once that they are again. */
function tellLosses(exporter, url, log) {
  let lost = false;
  const tell = ({ error }) => {
    if (Boolean(error) === lost) return;
    lost = Boolean(error);
    if (lost) log.warn('traces are lost, nothing takes them', { url, error });
    else log.info('traces are taken again', { url });
  };
  return {
    export: (spans, done) => context.with(ROOT_CONTEXT, () => exporter.export(spans, (result) => {
      tell(result);
      done(result);
    })),
    shutdown: () => exporter.shutdown(),
  };
}

/** Trace from here on, if the environment names an endpoint, else load nothing; returns what delivers the last spans. */
export async function startTracing(name, log, env = process.env) {
  const settings = tracingSettings(env);
  if (!settings) return async () => {};
  const [{ AsyncLocalStorageContextManager }, { W3CTraceContextPropagator }, { OTLPTraceExporter }, { resourceFromAttributes }, sdk] = await Promise.all([
    import('@opentelemetry/context-async-hooks'), import('@opentelemetry/core'), import('@opentelemetry/exporter-trace-otlp-http'),
    import('@opentelemetry/resources'), import('@opentelemetry/sdk-trace'),
  ]);
  const exporter = new OTLPTraceExporter({ url: settings.url, timeoutMillis: EXPORT_TIMEOUT_MS, concurrencyLimit: EXPORTS_AT_ONCE });
  const provider = new sdk.TracerProvider({
    resource: resourceFromAttributes({ 'service.name': settings.name || name, 'service.instance.id': hostname() }),
    sampler: new sdk.ParentBasedSampler({ root: new sdk.TraceIdRatioBasedSampler(settings.ratio) }),
    // Beyond 2048 spans that wait, new ones are dropped.
    spanProcessors: [new sdk.BatchSpanProcessor({ exporter: tellLosses(exporter, settings.url, log), scheduledDelayMillis: 1000, maxQueueSize: 2048 })],
  });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager());
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  tracer = provider.getTracer(name);
  return () => provider.shutdown();
}

function activeSpan() {
  const span = trace.getActiveSpan();
  return span?.isRecording() ? span : undefined;
}

function fail(span, type) {
  span.setStatus({ code: SpanStatusCode.ERROR }).setAttribute('error.type', String(type));
}

/** Do the work of a request inside its span, whose parent is the caller's. */
export function traceRequest({ req, route, requestId }, work) {
  if (!tracer) return work();
  const caller = propagation.extract(ROOT_CONTEXT, req.headers);
  const attributes = { 'http.request.method': req.method, 'http.route': route, 'citadelbuy.request_id': requestId };
  const span = tracer.startSpan(`${req.method} ${route}`, { kind: SpanKind.SERVER, attributes }, caller);
  return context.with(trace.setSpan(caller, span), work);
}

/** A handler of an event, as part of the request that is at work now. */
export const inRequest = (handler) => context.bind(context.active(), handler);

/** The request is over; `status` is what it was answered with. */
export function endRequest(status) {
  const span = activeSpan();
  if (!span) return;
  span.setAttribute('http.response.status_code', status);
  if (status >= 500) fail(span, status);
  span.end();
}

/** The request fails by this error. */
export function traceError(error) {
  const span = activeSpan();
  if (!span) return;
  const type = String(error.code ?? error.name);
  fail(span, type);
  span.recordException({ name: type, stack: error.stack?.match(/^ +at .*$/gm)?.join('\n') });
}

/** Do a call to another service, inside a span where the request is sampled: `describe` is asked for its name and attributes, `work` gets it. */
export function traceCall(describe, work) {
  if (!activeSpan()) return work(UNSAMPLED);
  const [name, attributes] = describe();
  return tracer.startActiveSpan(name, { kind: SpanKind.CLIENT, attributes }, async (span) => {
    try {
      return await work(span);
    } catch (error) {
      fail(span, error.code ?? error.name);
      throw error;
    } finally {
      span.end();
    }
  });
}

/** What an HTTP call was answered with; from 400 on it failed. */
export function traceStatus(span, status) {
  span.setAttribute('http.response.status_code', status);
  if (status >= 400) fail(span, status);
}

/** Headers by which the called service goes on with the trace. */
export function traceHeaders() {
  const headers = {};
  propagation.inject(context.active(), headers);
  return headers;
}

/** Fields by which a log line names the sampled request that it belongs to. */
export function traceFields() {
  const { traceId, spanId } = activeSpan()?.spanContext() ?? {};
  return { traceId, spanId };
}
