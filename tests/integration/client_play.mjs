// Played by tests/integration/test_clients.py: sends, waits and watches; the API is killed once the first line is written.
// node play.mjs DIST URL KEY

import { createInterface } from "node:readline/promises";
import { pathToFileURL } from "node:url";

const [dist, url, apiKey] = process.argv.slice(2);
const { ApiError, Heliograph } = await import(pathToFileURL(`${dist}/index.js`).href);
const heliograph = new Heliograph({ url, apiKey });
const mail = (address) => ({ to: { email: address }, content: { subject: "S", text: "hello" }, channels: ["email"] });

const later = await heliograph.send({ ...mail("ts@example.org"), send_at: new Date(Date.now() + 5_000).toISOString() });
const told = [];
const watching = (async () => {
  for await (const event of heliograph.watch([later.id])) told.push(event);
})();
while (told.length === 0) await new Promise((done) => setTimeout(done, 20));
console.log("watching");
const lines = createInterface({ input: process.stdin });
await lines.question("");
lines.close();

const now = await heliograph.send(mail("ts-now@example.org"));
const results = await heliograph.sendMany([mail("ts-1@example.org"), { to: {} }]);
const waited = [await heliograph.wait(now.id), await heliograph.wait(later.id)];
await watching;
const refusal = await heliograph.cancel(now.id).catch((error) => ({ isApiError: error instanceof ApiError, code: error.code, status: error.status }));
const users = await heliograph.api.GET("/v1/users", { params: { query: { limit: 1 } } });
const unknown = await heliograph.get(now.id.replace(/.$/, (last) => (last === "0" ? "1" : "0"))).catch((error) => error.status);
console.log(JSON.stringify({ id: later.id, told, waited, results, refusal, users: users.response.status, unknown }));
