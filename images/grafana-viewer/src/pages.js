import { slug } from './provisioning.js';

/** Text made safe for HTML content and quoted attributes. */
export function escape(text) {
  return String(text).replace(/[&<>"']/g, (char) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[char]);
}

function page(title, body, { head = '', attributes = '' } = {}) {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)} - Grafana viewer</title>
<link rel="icon" href="/public/logo.svg">
${head}<link rel="stylesheet" href="/public/style.css">
</head>
<body${attributes}>
${body}
<footer>A viewer for rehearsals, not Grafana: it reads Grafana's provisioning and shows its dashboards where Grafana itself cannot be had.</footer>
</body>
</html>
`;
}

const bar = (crumb, tools = '') => `<header><a class="home" href="/"><img src="/public/logo.svg" alt="" width="22" height="22">Dashboards</a>${crumb}<div class="tools">${tools}<a class="quiet" href="/logout">Sign out</a></div></header>`;

export const loginPage = (redirect, problem = '') => page('Sign in', `<main class="login">
<form method="post" action="/login" class="card">
<img src="/public/logo.svg" alt="" width="56" height="56">
<h1>Grafana viewer</h1>
${problem ? `<p class="problem" role="alert">${escape(problem)}</p>` : ''}
<label>User <input name="user" autocomplete="username" required autofocus></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<input type="hidden" name="redirect" value="${escape(redirect)}">
<button>Sign in</button>
</form>
</main>`);

export function listPage({ dashboards, problems }) {
  const folders = new Map();
  for (const { model, folder } of dashboards.values()) folders.set(folder, [...(folders.get(folder) ?? []), model]);
  const item = (model) => `<li><a href="/d/${encodeURIComponent(model.uid)}/${slug(model.title)}"><b>${escape(model.title)}</b><span>${escape(model.description ?? '')}</span><span class="tags">${(model.tags ?? []).map((tag) => `<i>${escape(tag)}</i>`).join('')}</span></a></li>`;
  const lists = [...folders].sort().map(([folder, models]) => `<h2>${escape(folder || 'General')}</h2>
<ul class="dashboards">${models.sort((a, b) => a.title.localeCompare(b.title)).map(item).join('\n')}</ul>`);
  const left = problems.map(({ file, message }) => `<li><code>${escape(file)}</code> ${escape(message)}</li>`).join('\n');
  return page('Dashboards', `${bar('')}
<main class="list">
<h1>Dashboards</h1>
${left ? `<div class="problem" role="alert"><p>These files are left out:</p><ul>${left}</ul></div>` : ''}
${lists.join('\n') || '<p>No dashboard is provisioned.</p>'}
</main>`);
}

export const dashboardPage = ({ model, folder }) => page(model.title, `${bar(`<span class="crumb">${escape(folder || 'General')}</span><span class="crumb title">${escape(model.title)}</span>`, `<select id="range" aria-label="Time range"></select>
<button id="now" type="button" aria-label="Refresh now">↻</button><select id="refresh" aria-label="Refresh every"></select>`)}
<div id="variables"></div>
<p id="message" class="problem" role="alert" hidden></p>
<main id="grid"></main>
<div id="tooltip" hidden></div>
<script type="module" src="/public/dashboard.js"></script>`, {
  head: '<link rel="stylesheet" href="/public/uPlot.min.css">\n', attributes: ` data-uid="${escape(model.uid)}"`,
});

/** Where the lines with a text are: the first dashboard of logs, up to the text; empty without one. */
function linesOf(dashboards) {
  for (const { model } of dashboards.values()) {
    const typed = model.templating?.list?.find(({ type }) => type === 'textbox');
    if (typed && model.panels.some(({ type }) => type === 'logs')) return `/d/${encodeURIComponent(model.uid)}/${slug(model.title)}?var-${encodeURIComponent(typed.name)}=`;
  }
  return '';
}

export const tracePage = ({ uid, name, jsonData }, trace, dashboards) => page(`Trace ${trace}`, `${bar(`<span class="crumb">${escape(name)}</span><span class="crumb title">Trace ${escape(trace)}</span>`)}
<p id="message" class="problem" role="alert" hidden></p>
<main id="trace"></main>
<script type="module" src="/public/trace.js"></script>`, {
  attributes: ` data-uid="${escape(uid)}" data-trace="${escape(trace)}" data-lines="${escape(jsonData.tracesToLogsV2 ? linesOf(dashboards) : '')}"`,
});

export const problemPage = (status, message, requestId) => page(`${status}`, `${bar('')}
<main class="list"><h1>${status}</h1><p>${escape(message)}</p><p class="quiet">Request ${escape(requestId)}</p></main>`);
