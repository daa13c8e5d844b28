// COUNT SERVER: c-ares's look-ups of COUNT names of `burst.test` at once; prints how many had an address, then the seconds.
import dns from 'node:dns';

const [count, server] = process.argv.slice(2);
const resolver = new dns.promises.Resolver();
resolver.setServers([server]);
const began = performance.now();
const found = await Promise.allSettled(
  Array.from({ length: Number(count) }, (_, number) => resolver.resolve4(`c${number}.burst.test`)));
const good = found.filter(({ value }) => value?.[0] === '192.0.2.9').length;
for (const { reason } of found) if (reason) console.error(reason.message);
console.log(good, (performance.now() - began) / 1000);
