// URL: reads an event stream by fetch, one line on stdout for each event as it comes.
const answer = await fetch(process.argv[2]);
console.log('status', answer.status);
for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
  for (const line of chunk.split('\n')) if (line) console.log(line);
}
