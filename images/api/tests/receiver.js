// A receiver of traces (OTLP over HTTP, as JSON), for the tests of the web front end too.
import http from 'node:http';

const plain = ({ stringValue, intValue, doubleValue, boolValue }) => stringValue ?? boolValue ?? Number(intValue ?? doubleValue);
const fields = (list = []) => Object.fromEntries(list.map(({ key, value }) => [key, plain(value)]));

/** Start it; { url, port, spans, exports, text(), hold(), release(), stop() }. Held, it takes spans and does not answer. */
export async function startReceiver(port = 0) {
  const waiting = [];
  let held = false;
  let text = '';
  const receiver = { spans: [], exports: 0 };
  const server = http.createServer(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    if (req.method !== 'POST' || req.url !== '/v1/traces') {
      res.writeHead(404).end();
      return;
    }
    text += body;
    receiver.exports += 1;
    for (const { resource, scopeSpans } of JSON.parse(body).resourceSpans) {
      for (const span of scopeSpans.flatMap(({ spans }) => spans)) {
        receiver.spans.push({ ...span, service: fields(resource.attributes)['service.name'], attributes: fields(span.attributes), events: span.events.map((event) => ({ ...event, attributes: fields(event.attributes) })) });
      }
    }
    const answer = () => res.writeHead(200, { 'Content-Type': 'application/json' }).end('{}');
    if (held) waiting.push(answer);
    else answer();
  });
  await new Promise((resolve) => { server.listen(port, '127.0.0.1', resolve); });
  return Object.assign(receiver, {
    url: `http://127.0.0.1:${server.address().port}`, port: server.address().port,
    /** All that was received, as it came. */
    text: () => text,
    hold: () => { held = true; },
    release: () => {
      held = false;
      for (const answer of waiting.splice(0)) answer();
    },
    stop: () => new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    }),
  });
}

/** A caller's traceparent, and the trace id in it. */
export function caller({ sampled = true } = {}) {
  const traceId = Array.from({ length: 32 }, () => '123456789abcdef'[Math.floor(Math.random() * 15)]).join('');
  return { traceId, headers: { traceparent: `00-${traceId}-00f067aa0ba902b7-${sampled ? '01' : '00'}` } };
}
