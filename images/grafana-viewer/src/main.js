import { createApp } from './app.js';
import { viewerSettings } from './config.js';
import { run } from './service.js';

run('grafana-viewer', async (log) => createApp(viewerSettings(process.env), log));
