// The application of the end-to-end tests: HTTP/1.1 with WebSocket, HTTP/2 in the clear, TCP echo, server-first TCP.
// node app.js NAME KIND=PORT...   with KIND http, http2, tcp or greet; standard library only; prints "ready".
// It contains no code for a mesh and reports everything it received, so that a test can compare with and without one.
"use strict";
const crypto = require("node:crypto");
const http = require("node:http");
const http2 = require("node:http2");
const net = require("node:net");

const [name, ...services] = process.argv.slice(2);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// /seen: what arrived, as JSON. /echo: the body, streamed. /status/N: that status. /slow/MS: late. /bytes/N: N bytes.
// /trailers: a chunked body with a trailer. /reset: the connection (HTTP/2: the stream) is cut.
async function handle(request, response) {
  const url = new URL(request.url, "http://app");
  const [, what, argument] = url.pathname.split("/");
  response.setHeader("x-app", name);
  if (what === "echo") return void request.pipe(response);
  const body = [];
  for await (const chunk of request) body.push(chunk);
  if (what === "slow") await sleep(Number(argument));
  if (what === "reset") return void (request.stream ?? request.socket).destroy();
  if (what === "status") response.statusCode = Number(argument);
  if (what === "bytes") return void response.end(Buffer.alloc(Number(argument), "w"));
  if (what === "trailers") {
    if (request.httpVersionMajor === 1) response.setHeader("trailer", "x-checksum");
    response.write("first ");
    await sleep(20);
    response.write("second");
    response.addTrailers({ "x-checksum": "12345" });
    return void response.end();
  }
  response.setHeader("content-type", "application/json");
  response.end(
    JSON.stringify({
      app: name,
      version: request.httpVersion,
      method: request.method,
      path: request.url,
      headers: request.headers,
      raw: request.rawHeaders,
      body: Buffer.concat(body).toString("latin1"),
      peer: request.socket.remoteAddress,
    }) + "\n",
  );
}

// RFC 6455: text frames of up to 65,535 bytes are echoed behind the name, a close is answered.
function upgrade(request, socket, head) {
  if (request.headers.upgrade?.toLowerCase() !== "websocket") return void socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
  const key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
  const accept = crypto.createHash("sha1").update(key).digest("base64");
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  let buffer = head;
  const read = (data) => {
    buffer = Buffer.concat([buffer, data]);
    for (;;) {
      if (buffer.length < 2) return;
      const opcode = buffer[0] & 15;
      let length = buffer[1] & 127;
      let at = 2;
      if (length === 126) {
        if (buffer.length < 4) return;
        length = buffer.readUInt16BE(2);
        at = 4;
      }
      if (buffer.length < at + 4 + length) return;
      const mask = buffer.subarray(at, at + 4);
      const payload = Buffer.from(buffer.subarray(at + 4, at + 4 + length)).map((byte, i) => byte ^ mask[i % 4]);
      buffer = buffer.subarray(at + 4 + length);
      if (opcode === 8) return void socket.end(Buffer.from([0x88, 0]));
      const answer = Buffer.concat([Buffer.from(`${name}: `), payload]);
      const header =
        answer.length < 126 ? [0x81, answer.length] : [0x81, 126, answer.length >> 8, answer.length & 255];
      socket.write(Buffer.concat([Buffer.from(header), answer]));
    }
  };
  socket.on("data", read);
  socket.on("error", () => socket.destroy());
  read(Buffer.alloc(0));
}

// Echoes; when the client has finished sending, says so and finishes too (half-close).
function echo(socket) {
  socket.on("data", (data) => socket.write(data));
  socket.on("end", () => socket.end(`bye from ${name}\n`));
  socket.on("error", () => socket.destroy());
}

const kinds = {
  http: () => {
    const server = http.createServer(handle);
    server.on("upgrade", upgrade);
    server.keepAliveTimeout = 60_000;
    return server;
  },
  http2: () => http2.createServer(handle),
  tcp: () => net.createServer({ allowHalfOpen: true }, echo),
  greet: () =>
    net.createServer({ allowHalfOpen: true }, (socket) => {
      socket.write(`220 ${name} ready\n`);
      echo(socket);
    }),
};

Promise.all(
  services.map((service) => {
    const [kind, port] = service.split("=");
    return new Promise((resolve) => kinds[kind]().listen(Number(port), "::", resolve));
  }),
).then(() => console.log("ready"));
