// CERTIFICATE KEY OPTIONS: an origin by HTTP/2 and HTTP/1.1 that says of each request `METHOD PATH` when it arrives.
// OPTIONS, in JSON, are those of `http2.createSecureServer`, and `keepAliveTimeout`. What is below /held/ is answered
// when a request for /release comes; what is below /open/ has no end. At the line `refuse` on stdin it takes no further connections, until the line `accept`.
import { readFileSync } from 'node:fs';
import http2 from 'node:http2';

const [certificate, key, text] = process.argv.slice(2);
const { keepAliveTimeout = 0, ...options } = JSON.parse(text ?? '{}');
const held = [];
const server = http2.createSecureServer(
  { cert: readFileSync(certificate), key: readFileSync(key), allowHTTP1: true, ...options },
  (request, response) => {
    console.log(`${request.method} ${request.url}`);
    const answer = () => response.end(`${request.method} ${request.url}`);
    if (request.url === '/release') held.splice(0).forEach((late) => late());
    if (request.url.startsWith('/held/')) held.push(answer);
    else if (request.url.startsWith('/open/')) response.write('.');
    else request.resume().on('end', answer);
  },
);
process.stdin.on('data', (line) => {
  server.maxConnections = `${line}`.trim() === 'refuse' ? 1 : 1000;
  console.log('heard');
});
server.keepAliveTimeout = keepAliveTimeout;
server.listen(0, '127.0.0.1', () => console.log(`ready ${server.address().port}`));
