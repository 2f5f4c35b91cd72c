'use strict';
// A small Redis client: RESP2 over one TCP connection.
// Replies come in the order of commands, so many callers share the connection.
// Bounds: `maxPending` commands, `timeoutMs` for each (waiting for a connection included), 1 MiB for a reply.
// A lost connection fails the commands that were sent (nobody knows whether they ran) and is opened again
// with a growing, jittered pause; commands not yet sent wait for it within their time.

const net = require('node:net');

const MAX_BULK = 1 << 20;
const MAX_LINE = 64 * 1024;
const MAX_ITEMS = 10_000;
const MAX_DEPTH = 4;

class RedisError extends Error {} // the server answered "-ERR ..."
class Unavailable extends Error { // no answer: `sent` tells whether the command may have run
  constructor(message, sent) {
    super(message);
    this.sent = sent;
  }
}

/** Decodes one reply at `at`. Gives [value, end], or null when bytes are missing; throws on bytes that are not RESP2. */
function decode(buffer, at = 0, depth = 0) {
  const end = buffer.indexOf('\r\n', at);
  if (end < 0) {
    if (buffer.length - at > MAX_LINE) throw new Error('reply line too long');
    return null;
  }
  const text = buffer.toString('utf8', at + 1, end);
  const next = end + 2;
  switch (String.fromCharCode(buffer[at])) {
    case '+': return [text, next];
    case '-': return [new RedisError(text), next];
    case ':': return [integer(text), next];
    case '$': {
      const length = integer(text);
      if (length === -1) return [null, next];
      if (length < 0 || length > MAX_BULK) throw new Error(`bulk reply of ${length} bytes`);
      if (buffer.length < next + length + 2) return null;
      if (buffer[next + length] !== 13 || buffer[next + length + 1] !== 10) throw new Error('bulk reply without end');
      return [buffer.toString('utf8', next, next + length), next + length + 2];
    }
    case '*': {
      const count = integer(text);
      if (count === -1) return [null, next];
      if (count < 0 || count > MAX_ITEMS || depth >= MAX_DEPTH) throw new Error(`array reply of ${count} items`);
      const items = [];
      let position = next;
      for (let i = 0; i < count; i += 1) {
        const item = decode(buffer, position, depth + 1);
        if (item === null) return null;
        items.push(item[0]);
        position = item[1];
      }
      return [items, position];
    }
    default: throw new Error('not a RESP reply');
  }
}

function integer(text) {
  if (!/^-?\d{1,15}$/.test(text)) throw new Error('not an integer in a reply');
  return Number(text);
}

function encode(parts) {
  let out = `*${parts.length}\r\n`;
  for (const part of parts) out += `$${Buffer.byteLength(part)}\r\n${part}\r\n`;
  return out;
}

class Redis {
  /** `prepare(send)` runs on each new connection before any other command; the connection counts as ready after it. */
  constructor({ host, port, prepare, onChange = () => {}, timeoutMs = 2000, maxPending = 1024 }) {
    Object.assign(this, { host, port, prepare, onChange, timeoutMs, maxPending });
    this.waiting = []; // commands without a connection
    this.sent = []; // commands without a reply, oldest first
    this.ready = false;
    this.closed = false;
    this.pauseMs = 50;
    this.#open();
  }

  /** Runs a command: `command('GET', key)`. Rejects with RedisError or Unavailable. */
  command(...parts) {
    if (this.closed) return Promise.reject(new Unavailable('client closed', false));
    if (this.waiting.length + this.sent.length >= this.maxPending) {
      return Promise.reject(new Unavailable('too many commands wait for the database', false));
    }
    return new Promise((resolve, reject) => {
      const entry = { bytes: encode(parts), resolve, reject, timer: null };
      entry.timer = setTimeout(() => this.#expire(entry), this.timeoutMs);
      if (this.ready) this.#send(entry);
      else this.waiting.push(entry);
    });
  }

  close() {
    this.closed = true;
    clearTimeout(this.reopen);
    this.#lose(new Error('client closed'));
    for (const entry of this.waiting.splice(0)) finish(entry, new Unavailable('client closed', false));
  }

  #open() {
    const socket = net.connect({ host: this.host, port: this.port, noDelay: true, keepAlive: true });
    this.socket = socket;
    let received = Buffer.alloc(0);
    const opening = setTimeout(() => this.#lose(new Error('connect timed out')), this.timeoutMs);
    socket.on('connect', () => {
      this.#prepare(socket).then(() => clearTimeout(opening), (error) => {
        clearTimeout(opening);
        if (this.socket === socket) this.#lose(error);
      });
    });
    socket.on('data', (chunk) => {
      if (this.socket !== socket) return;
      received = received.length ? Buffer.concat([received, chunk]) : chunk;
      try {
        let at = 0;
        for (;;) {
          if (at >= received.length) break;
          const reply = decode(received, at);
          if (reply === null) break;
          at = reply[1];
          this.#reply(reply[0]);
        }
        received = received.subarray(at);
      } catch (error) {
        this.#lose(error);
      }
    });
    const lost = (error) => {
      clearTimeout(opening);
      if (this.socket === socket) this.#lose(error);
    };
    socket.on('error', lost);
    socket.on('close', () => lost(new Error('connection closed')));
  }

  async #prepare(socket) {
    await this.prepare((...parts) => new Promise((resolve, reject) => {
      const entry = { bytes: encode(parts), resolve, reject, timer: null };
      entry.timer = setTimeout(() => this.#expire(entry), this.timeoutMs);
      if (this.socket === socket) this.#send(entry);
      else finish(entry, new Unavailable('connection closed', false));
    }));
    if (this.socket !== socket) return;
    this.ready = true;
    this.pauseMs = 50;
    this.onChange(true, null);
    for (const entry of this.waiting.splice(0)) this.#send(entry);
  }

  #send(entry) {
    this.sent.push(entry);
    this.socket.write(entry.bytes);
  }

  #reply(value) {
    const entry = this.sent.shift();
    if (!entry) throw new Error('reply without a command');
    finish(entry, value instanceof RedisError ? value : null, value);
  }

  #expire(entry) {
    const at = this.waiting.indexOf(entry);
    if (at >= 0) {
      this.waiting.splice(at, 1);
      finish(entry, new Unavailable('no connection to the database', false));
    } else {
      this.#lose(new Error('no reply in time')); // the order of replies is lost with it
    }
  }

  #lose(error) {
    if (!this.socket) return;
    this.socket.destroy();
    this.socket = null;
    const was = this.ready;
    this.ready = false;
    for (const entry of this.sent.splice(0)) finish(entry, new Unavailable(`database: ${error.message}`, true));
    if (was || this.pauseMs === 50) this.onChange(false, error);
    if (this.closed) return;
    this.reopen = setTimeout(() => this.#open(), this.pauseMs * (0.5 + Math.random() / 2));
    this.pauseMs = Math.min(this.pauseMs * 2, 1000);
  }
}

function finish(entry, error, value) {
  clearTimeout(entry.timer);
  if (error) entry.reject(error);
  else entry.resolve(value);
}

module.exports = { Redis, RedisError, Unavailable, decode, encode };
