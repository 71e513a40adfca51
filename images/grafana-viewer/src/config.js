import { readFileSync } from 'node:fs';
import { SERVICE_ENV, readEnv } from './service.js';

const GRAFANA_ENV = {
  GF_SERVER_HTTP_PORT: { number: true, default: 3000 },
  GF_SECURITY_ADMIN_USER: { default: 'admin' },
  GF_SECURITY_ADMIN_PASSWORD: {},
  GF_SECURITY_COOKIE_SECURE: { default: false },
  GF_PATHS_PROVISIONING: { default: '/etc/grafana/provisioning' },
  GF_DATAPROXY_TIMEOUT: { number: true, default: 30 },
};

/** The environment with what each GF_X__FILE names read into GF_X, as Grafana's container does. */
export function withFiles(env) {
  const all = { ...env };
  for (const [name, file] of Object.entries(env)) {
    const target = /^(GF_\w+)__FILE$/.exec(name)?.[1];
    if (!target || !file) continue;
    if (env[target]) throw new Error(`environment variables ${target} and ${name} are both set; set one of them`);
    try {
      all[target] = readFileSync(file, 'utf8').replace(/[\r\n]+$/, '');
    } catch (error) {
      throw new Error(`the file that environment variable ${name} names cannot be read: ${error.message}`);
    }
  }
  return all;
}

/** Settings of the viewer; throws one error that says what is missing or refused. */
export function viewerSettings(env) {
  const all = withFiles(env);
  const { PORT, ...service } = SERVICE_ENV;
  const settings = readEnv({ ...service, ...GRAFANA_ENV }, all);
  if (/^(admin|change.?me.*)$/i.test(settings.GF_SECURITY_ADMIN_PASSWORD)) {
    throw new Error('GF_SECURITY_ADMIN_PASSWORD is a placeholder that everybody knows; set a password of your own');
  }
  return {
    ...settings,
    PORT: settings.GF_SERVER_HTTP_PORT,
    ignored: Object.keys(all).filter((name) => name.startsWith('GF_') && !name.endsWith('__FILE') && !(name in GRAFANA_ENV)).sort(),
  };
}
