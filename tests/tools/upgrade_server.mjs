// CERTIFICATE KEY: an origin over TLS that changes to whatever protocol a request asks for, and then answers each byte in upper
// case. A request with a body is read to its end first. Says each request, and whether its connection has changed.
import fs from 'node:fs';
import https from 'node:https';

const [certificate, key] = process.argv.slice(2);
const server = https.createServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) });

server.on('request', (request, response) => {
  console.log(`answered ${request.method} ${request.url}`);
  response.end('no tunnel');
});

server.on('upgrade', (request, socket, head) => {
  const length = Number(request.headers['content-length'] ?? 0);
  let before = head;
  const change = () => {
    const body = before.subarray(0, length);
    const { upgrade } = request.headers;
    console.log(`changed ${request.method} ${request.url} ${upgrade} ${body}`);
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${upgrade}\r\n\r\n`);
    const shout = (bytes) => socket.write(bytes.toString().toUpperCase());
    if (before.length > length) shout(before.subarray(length));
    socket.on('data', shout);
    socket.on('end', () => socket.end());
  };
  socket.on('error', () => {});
  if (before.length >= length) return change();
  socket.on('data', function body(bytes) {
    before = Buffer.concat([before, bytes]);
    if (before.length < length) return;
    socket.off('data', body);
    change();
  });
});

server.listen(0, '127.0.0.1', () => console.log(`ready ${server.address().port}`));
