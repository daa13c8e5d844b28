// URL: the `ws` package opens a WebSocket and has a message echoed. Or says `refused STATUS`.
import { createRequire } from 'node:module';

const { WebSocket } = createRequire(process.env.NODE_PATH + '/')('ws');
const socket = new WebSocket(process.argv[2]);
socket.on('open', () => socket.send('hello'));
socket.on('message', (message) => { console.log('echoed', message.length); socket.close(1000); });
socket.on('close', (code) => console.log('closed', code));
socket.on('unexpected-response', (_, answer) => { console.log('refused', answer.statusCode); process.exit(0); });
socket.on('error', (error) => { console.log('error', error.message); process.exit(1); });
