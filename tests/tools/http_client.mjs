// One request by a way that Node's users have: WAY METHOD URL. Prints the status, then the body.
import { createRequire } from 'node:module';
import https from 'node:https';
import http2 from 'node:http2';

const [way, method, url] = process.argv.slice(2);
const require = createRequire(process.env.NODE_PATH + '/');

const text = async (stream) => {
  let all = '';
  for await (const chunk of stream.setEncoding('utf8')) all += chunk;
  return all;
};

const ways = {
  async fetch() {
    const answer = await fetch(url, { method });
    return [answer.status, await answer.text()];
  },
  https: () => new Promise((resolve, reject) => {
    https.request(url, { method }, async (answer) => resolve([answer.statusCode, await text(answer)]))
      .on('error', reject).end();
  }),
  http2: () => new Promise((resolve, reject) => {
    const { origin, pathname } = new URL(url);
    const session = http2.connect(origin).on('error', reject);
    const request = session.request({ ':method': method, ':path': pathname }).on('error', reject);
    request.on('response', async (headers) => {
      const body = await text(request);
      session.close();
      resolve([headers[':status'], body]);
    });
    request.end();
  }),
  async undici() {
    const answer = await require('undici').request(url, { method });
    return [answer.statusCode, await answer.body.text()];
  },
};

const [status, body] = await ways[way]();
console.log(status);
console.log(body);
