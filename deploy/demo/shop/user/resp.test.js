'use strict';
// node --test deploy/demo/shop/user/

const test = require('node:test');
const assert = require('node:assert');
const net = require('node:net');
const { Redis, RedisError, Unavailable, decode, encode } = require('./resp.js');

test('whole replies are decoded and every cut of them asks for more', () => {
  const cases = [
    ['+OK\r\n', 'OK'],
    [':-42\r\n', -42],
    ['$5\r\nhé!x\r\n', 'hé!x'],
    ['$0\r\n\r\n', ''],
    ['$-1\r\n', null],
    ['*-1\r\n', null],
    ['*3\r\n:1\r\n$1\r\na\r\n*1\r\n+b\r\n', [1, 'a', ['b']]],
  ];
  for (const [text, value] of cases) {
    const bytes = Buffer.from(text);
    assert.deepStrictEqual(decode(bytes), [value, bytes.length]);
    for (let cut = 1; cut < bytes.length; cut += 1) assert.strictEqual(decode(bytes.subarray(0, cut)), null, text);
  }
  assert.ok(decode(Buffer.from('-ERR no\r\n'))[0] instanceof RedisError);
});

test('bytes that are not RESP are refused', () => {
  for (const text of ['HTTP/1.1 400\r\n', '$x\r\n', '$-2\r\n', '$99999999\r\n', '$1\r\nabc', '*99999\r\n', ':1.5\r\n',
    '*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n']) {
    assert.throws(() => decode(Buffer.from(text)), text);
  }
});

test('a command is an array of bulk strings counted in bytes', () => {
  assert.strictEqual(encode(['SET', 'k', 'é']), '*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\né\r\n');
});

test('a lost connection fails what was sent, keeps what waits, and is opened again', async (t) => {
  let connections = 0;
  const server = net.createServer((socket) => {
    const first = (connections += 1) === 1;
    socket.on('data', () => (first ? socket.destroy() : socket.write('+PONG\r\n')));
    socket.on('error', () => {});
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const redis = new Redis({ host: '127.0.0.1', port: server.address().port, prepare: async () => {} });
  t.after(() => { redis.close(); server.close(); });
  while (!redis.ready) await new Promise((resolve) => setTimeout(resolve, 5));
  await assert.rejects(redis.command('PING'), (error) => error instanceof Unavailable && error.sent);
  assert.strictEqual(await redis.command('PING'), 'PONG');
  assert.strictEqual(connections, 2);
});

test('nothing waits for ever, and no more than the bound waits', async (t) => {
  const redis = new Redis({ host: '127.0.0.1', port: 1, prepare: async () => {}, timeoutMs: 100, maxPending: 2 });
  t.after(() => redis.close());
  const two = [redis.command('PING'), redis.command('PING')];
  await assert.rejects(redis.command('PING'), /too many/);
  for (const one of two) await assert.rejects(one, (error) => error instanceof Unavailable && !error.sent);
});
