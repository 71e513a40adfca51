import { SERVICE_ENV, readEnv } from './service.js';

export function webSettings(env) {
  const settings = readEnv({ ...SERVICE_ENV, API_URL: {}, API_TIMEOUT_MS: { number: true, default: 15000 } }, env);
  let url;
  try {
    url = new URL(settings.API_URL);
  } catch {
    url = undefined;
  }
  if (url?.protocol !== 'http:') throw new Error('environment variable API_URL must be an http URL, such as http://citadelbuy-api:3000');
  return settings;
}
