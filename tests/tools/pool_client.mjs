// WAY ORIGIN ...: requests that show what becomes of their connections.
import { createRequire } from 'node:module';
import http2 from 'node:http2';
import https from 'node:https';

const [way, origin, ...rest] = process.argv.slice(2);

const over = (session, method, path) => new Promise((resolve, reject) => {
  const request = session.request({ ':method': method, ':path': path }).on('error', reject);
  request.on('response', (headers) => request.resume().on('end', () => resolve(headers[':status'])));
  request.end();
});

const ways = {
  // CONNECTIONS ROUNDS: a GET that is not waited for, then a POST: by HTTP/1.1 on another connection that is `new` or has
  // been `kept`, or by HTTP/2 on the `same`.
  async order(connections, rounds) {
    const { Agent, request } = createRequire(process.env.NODE_PATH + '/')('undici');
    const session = connections === 'same' ? http2.connect(origin) : null;
    let dispatcher = new Agent();
    for (let n = 0; n < Number(rounds); n += 1) {
      const send = async (method, name) => {
        const url = `/v1/${n}/${name}`;
        if (session) return over(session, method, url);
        const body = method === 'POST' ? '{}' : undefined;
        return (await request(origin + url, { method, body, dispatcher })).body.text();
      };
      if (connections === 'new') dispatcher = new Agent();
      await send('POST', 'first');
      await new Promise(setImmediate);
      await Promise.all([send('GET', 'stream'), send('POST', 'then')]);
      if (connections === 'new') await dispatcher.close();
    }
    session?.close();
    if (connections !== 'new') await dispatcher.close();
    console.log('done');
  },
  // STREAMS: so many requests that are held, and one beside them.
  async streams(held) {
    const session = http2.connect(origin);
    const all = Array.from({ length: Number(held) }, (_, n) => over(session, 'GET', `/held/${n}`));
    console.log(await over(session, 'GET', '/v1/beside'));
    await over(session, 'GET', '/release');
    console.log((await Promise.all(all)).join(' '));
    session.close();
  },
  // CONNECTIONS ROUNDS: on each connection POST after POST, about a second apart.
  async pauses(connections, rounds) {
    const statuses = {};
    const one = async (index) => {
      const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });
      for (let n = 0; n < Number(rounds); n += 1) {
        const status = await new Promise((resolve) => {
          https.request(`${origin}/v1/${index}/${n}`, { method: 'POST', agent }, (answer) => {
            answer.resume().on('end', () => resolve(answer.statusCode));
          }).on('error', (error) => resolve(error.code)).end('x');
        });
        statuses[status] = (statuses[status] ?? 0) + 1;
        await new Promise((resolve) => setTimeout(resolve, 900 + 200 * ((index * 7 + n * 3) % 20) / 20));
      }
      agent.destroy();
    };
    await Promise.all(Array.from({ length: Number(connections) }, (_, index) => one(index)));
    console.log(JSON.stringify(statuses));
  },
  // VERSION: a request, and one more when a line has come.
  async mute(version) {
    const session = version === '2' ? http2.connect(origin) : null;
    const agent = new https.Agent({ keepAlive: true });
    const get = () => session ? over(session, 'GET', '/v1/x') : new Promise((resolve, reject) => {
      https.get(`${origin}/v1/x`, { agent }, (answer) => {
        answer.resume().on('end', () => resolve(answer.statusCode));
      }).on('error', reject);
    });
    console.log('first', await get());
    process.stdin.once('data', async () => {
      const began = Date.now();
      console.log('second', await get(), Date.now() - began);
      process.exit(0);
    });
  },
};

await ways[way](...rest);
