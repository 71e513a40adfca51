import { createApp } from './app.js';
import { apiSettings } from './config.js';
import { run } from './service.js';

run('citadelbuy-api', async (log) => createApp(apiSettings(process.env), log));
