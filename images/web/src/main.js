import { createApp } from './app.js';
import { webSettings } from './config.js';
import { run } from './service.js';

run('citadelbuy-web', async (log) => createApp(webSettings(process.env), log));
