'use strict';
// The user service: users over HTTP/1.1, kept in Redis. Node's standard library only.
// GET /users/{id}, POST /users {name, email}, GET /healthz.
// Settings come from the environment: BIND, INSTANCE, USER_DB_ADDR, LOG.

const http = require('node:http');
const os = require('node:os');
const { Redis, Unavailable } = require('./resp.js');

const MAX_BODY = 16 * 1024;
const DRAIN_MS = 1500;
const SEEDS = ['Ada', 'Boris', 'Chiara', 'Dmitri', 'Edith', 'Farid', 'Greta', 'Hugo', 'Ines', 'Jonas',
  'Kira', 'Lars', 'Mina', 'Noor', 'Otto', 'Pia', 'Quentin', 'Rosa', 'Sven', 'Tilda'];

const instance = process.env.INSTANCE || os.hostname();
const quiet = process.env.LOG === 'warn';
const bind = parseAddress('BIND', process.env.BIND || '0.0.0.0:8080');
const database = parseAddress('USER_DB_ADDR', process.env.USER_DB_ADDR || 'user-db:6379');
let draining = false;

/** Writes one JSON object as a line. */
function log(level, message, fields) {
  process.stdout.write(`${JSON.stringify({ timestamp: new Date(), level, service: 'user', instance, message, ...fields })}\n`);
}

/** `host:port` or `[host]:port` -> {host, port}. */
function parseAddress(name, text) {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  if (!match || Number(match[3]) > 65535) {
    process.stderr.write(`${name}: expected host:port or [host]:port, not ${JSON.stringify(text)}\n`);
    process.exit(64);
  }
  return { host: match[1] || match[2], port: Number(match[3]) };
}

const redis = new Redis({
  ...database,
  // NX leaves alone what is there, so two instances may do this at once, and a database that came back empty is filled.
  async prepare(send) {
    await send('SET', 'user:last', '1000', 'NX');
    for (const [index, name] of SEEDS.entries()) {
      const id = `u${index + 1}`;
      await send('SET', `user:${id}`, JSON.stringify({ id, name, email: `${name.toLowerCase()}@shop.example` }), 'NX');
    }
  },
  onChange(up, error) {
    if (up) log('INFO', 'database ready', { database: process.env.USER_DB_ADDR || 'user-db:6379' });
    else log('WARN', 'database lost', { error: error.message });
  },
});

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function readUser(id) {
  let text;
  try {
    text = await redis.command('GET', `user:${id}`);
  } catch (error) {
    if (!(error instanceof Unavailable && error.sent)) throw error;
    text = await redis.command('GET', `user:${id}`); // reading twice is harmless: once more on the next connection
  }
  if (text === null) throw new Refused(404, `no user ${id}`);
  return JSON.parse(text);
}

async function createUser(request) {
  let fields;
  try {
    fields = JSON.parse(await readBody(request));
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Refused(400, `body: ${error.message}`);
  }
  if (fields === null || typeof fields !== 'object' || Array.isArray(fields)) throw new Refused(400, 'body: expected an object');
  for (const key of Object.keys(fields)) {
    if (key !== 'name' && key !== 'email') throw new Refused(400, `${key.slice(0, 64)}: unknown field`);
  }
  for (const key of ['name', 'email']) {
    if (typeof fields[key] !== 'string' || fields[key].length < 1 || fields[key].length > 200) {
      throw new Refused(400, `${key}: expected a text of 1 to 200 characters`);
    }
  }
  const user = { id: `u${await redis.command('INCR', 'user:last')}`, name: fields.name, email: fields.email };
  await redis.command('SET', `user:${user.id}`, JSON.stringify(user));
  return user;
}

async function readBody(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BODY) throw new Refused(413, `body: more than ${MAX_BODY} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

async function healthy() {
  if (draining || !redis.ready) return false;
  try {
    return await redis.command('PING') === 'PONG';
  } catch {
    return false;
  }
}

/** Gives [status, body, headers] for a request, or throws. */
async function answer(request) {
  const path = request.url.split('?', 1)[0];
  if (path === '/healthz') {
    const ready = await healthy();
    return [ready ? 200 : 503, { ready }];
  }
  if (path === '/users') {
    if (request.method !== 'POST') return [405, { error: `method ${request.method} not allowed` }, { allow: 'POST' }];
    const user = await createUser(request);
    return [201, user, { location: `/users/${user.id}` }];
  }
  const match = /^\/users\/([A-Za-z0-9_-]{1,64})$/.exec(path);
  if (!match) throw new Refused(404, `no such path: ${path.slice(0, 200)}`);
  if (request.method !== 'GET') return [405, { error: `method ${request.method} not allowed` }, { allow: 'GET' }];
  return [200, await readUser(match[1])];
}

const server = http.createServer(async (request, response) => {
  const started = process.hrtime.bigint();
  let status;
  let body;
  let headers;
  try {
    [status, body, headers] = await answer(request);
  } catch (error) {
    status = error.status || 503;
    body = { error: error.message };
    if (!error.status && !(error instanceof Unavailable)) log('ERROR', 'request failed', { error: error.message });
  }
  const data = JSON.stringify({ ...body, instance });
  // A body that was not read to its end would stand in the way of the next request.
  const last = draining || !(request.complete || request.headers['content-length'] === undefined
    && request.headers['transfer-encoding'] === undefined);
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(data),
    'x-instance': instance,
    ...headers,
    ...(last ? { connection: 'close' } : {}),
  });
  response.end(data);
  if (!quiet && request.url !== '/healthz') {
    const ms = Number((process.hrtime.bigint() - started) / 10_000n) / 100;
    log('INFO', 'request', { method: request.method, path: request.url, status, ms, traceparent: request.headers.traceparent });
  }
});

// Longer than proxies usually keep an idle connection, so that they close first.
server.keepAliveTimeout = 75_000;
server.maxConnections = 1024;
server.on('error', (error) => {
  process.stderr.write(`BIND: cannot listen on ${bind.host}:${bind.port}: ${error.message}\n`);
  process.exit(1);
});
server.listen({ ...bind, ipv6Only: false }, () => {
  const { address, port } = server.address();
  log('INFO', 'listening', { address: address.includes(':') ? `[${address}]:${port}` : `${address}:${port}` });
});

function stop() {
  if (draining) return;
  draining = true;
  log('INFO', 'stopping');
  const end = () => {
    redis.close();
    log('INFO', 'stopped');
    process.exit(0);
  };
  server.close(end);
  server.closeIdleConnections();
  setTimeout(end, DRAIN_MS).unref();
}
process.on('SIGTERM', stop);
process.on('SIGINT', stop);
