// An application in Node for foreign.rs: HTTP/1 on one port and HTTP/2 with prior knowledge on another, which it prints. An answer
// to a path that it does not know tells what arrived.
'use strict';

const crypto = require('node:crypto');
const http = require('node:http');
const http2 = require('node:http2');

const MINE = ['host', 'connection', 'keep-alive', 'traceparent', 'weft-client-id', 'x-forwarded-proto', ':authority'];

function report(headers, message, trailers, done) {
  const hash = crypto.createHash('sha256');
  let size = 0;
  message.on('data', (data) => {
    hash.update(data);
    size += data.length;
  });
  message.on('end', () => {
    const fields = Object.entries(headers).filter(([name]) => !MINE.includes(name)).sort();
    done(JSON.stringify({ fields, size, hash: hash.digest('hex'), trailers: trailers() }) + '\n');
  });
}

// Sends `size` bytes as fast as they are taken, then ends.
function bytes(answer, size) {
  const block = Buffer.alloc(64 * 1024, 'z');
  const more = () => {
    while (size > 0) {
      const part = block.subarray(0, Math.min(size, block.length));
      size -= part.length;
      if (!answer.write(part)) return answer.once('drain', more);
    }
    answer.end();
  };
  more();
}

function sized(url) {
  const size = /^\/bytes\/(\d+)$/.exec(url);
  return size && Number(size[1]);
}

const one = http.createServer((request, answer) => {
  const size = sized(request.url);
  if (size) {
    answer.setHeader('content-length', size);
    return bytes(answer, size);
  }
  switch (request.url) {
    case '/chunked': return bytes(answer, 200000);
    case '/empty': return answer.writeHead(204).end();
    case '/same': return answer.writeHead(304, { etag: '"a"' }).end();
    case '/cookies': return answer.setHeader('set-cookie', ['a=1', 'b=2']).end('ok\n');
    case '/hints':
      answer.writeEarlyHints({ link: '</a.css>; rel=preload' });
      return setTimeout(() => answer.end('hinted\n'), 20);
    case '/trailers':
      if (request.httpVersion === '1.0') return answer.end('hello\n');
      answer.writeHead(200, { trailer: 'x-sum' });
      answer.write('hello ');
      answer.addTrailers({ 'x-sum': 'abc' });
      return answer.end('world\n');
    case '/too-large': return answer.writeHead(413, { 'content-length': 4 }).end('big\n');
    case '/cut':
      answer.writeHead(200, { 'content-length': 100000 });
      answer.write('y'.repeat(500));
      return setTimeout(() => request.socket.destroy(), 20);
    default: {
      const trailers = () => request.trailers;
      return report(request.headers, request, trailers, (text) => answer.end(text));
    }
  }
});

const two = http2.createServer();
two.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  const size = sized(headers[':path']);
  if (size) {
    stream.respond({ ':status': 200 });
    return bytes(stream, size);
  }
  switch (headers[':path']) {
    case '/empty': return stream.respond({ ':status': 204 }, { endStream: true });
    case '/cookies':
      stream.respond({ ':status': 200, 'set-cookie': ['a=1', 'b=2'] });
      return stream.end('ok\n');
    case '/trailers':
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': 'abc' }));
      return stream.end('hello world\n');
    default: {
      let trailers = {};
      stream.on('trailers', (fields) => { trailers = { ...fields }; });
      return report(headers, stream, () => trailers, (text) => {
        stream.respond({ ':status': 200 });
        stream.end(text);
      });
    }
  }
});

one.listen(0, '127.0.0.1', () => two.listen(0, '127.0.0.1', () => {
  console.log(`${one.address().port} ${two.address().port}`);
}));
// Whoever started this is gone.
process.stdin.on('end', () => process.exit()).resume();
