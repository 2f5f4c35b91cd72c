// A WebSocket client for the end-to-end tests (RFC 6455): node websocket.js HOST PORT PATH MESSAGE...
// Sends one text frame per message, each after the answer to the one before, prints the answers, closes. Exit 1 when
// the server does not upgrade, with its status.
"use strict";
const crypto = require("node:crypto");
const http = require("node:http");

const [host, port, path, ...messages] = process.argv.slice(2);
const key = crypto.randomBytes(16).toString("base64");
const request = http.request({
  host,
  port,
  path,
  headers: { connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13", "sec-websocket-key": key },
});

function frame(opcode, payload) {
  const mask = crypto.randomBytes(4);
  const length = payload.length < 126 ? [0x80 | payload.length] : [0x80 | 126, payload.length >> 8, payload.length & 255];
  return Buffer.concat([Buffer.from([0x80 | opcode, ...length]), mask, payload.map((byte, i) => byte ^ mask[i % 4])]);
}

request.on("response", (response) => {
  console.log(`not upgraded: ${response.statusCode}`);
  process.exit(1);
});
request.on("error", (error) => {
  console.log(`error: ${error.code}`);
  process.exit(1);
});
request.on("upgrade", (response, socket, head) => {
  const accept = crypto.createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
  if (response.headers["sec-websocket-accept"] !== accept) {
    console.log("wrong sec-websocket-accept");
    process.exit(1);
  }
  let buffer = head;
  const next = () => {
    const message = messages.shift();
    socket.write(message === undefined ? frame(8, Buffer.alloc(0)) : frame(1, Buffer.from(message)));
  };
  const read = (data) => {
    buffer = Buffer.concat([buffer, data]);
    while (buffer.length >= 2) {
      let [length, at] = [buffer[1], 2];
      if (length === 126) {
        if (buffer.length < 4) return;
        [length, at] = [buffer.readUInt16BE(2), 4];
      }
      if (buffer.length < at + length) return;
      if ((buffer[0] & 15) === 8) {
        console.log("closed");
        process.exit(0);
      }
      console.log(buffer.subarray(at, at + length).toString());
      buffer = buffer.subarray(at + length);
      next();
    }
  };
  socket.on("data", read);
  socket.on("close", () => {
    console.log("cut");
    process.exit(1);
  });
  read(Buffer.alloc(0));
  next();
});
request.end();
