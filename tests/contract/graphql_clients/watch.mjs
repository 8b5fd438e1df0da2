// Subscribes with a client that nobody here wrote, and prints each result as a line of JSON; ends with the subscription, or after `most` results.
//   node watch.mjs ws|sse URL KEY QUERY VARIABLES MOST
import { createClient as createSseClient } from 'graphql-sse';
import { createClient as createWsClient } from 'graphql-ws';
import WebSocket from 'ws';

const [kind, url, key, query, variables, most] = process.argv.slice(2);
const authorization = `Bearer ${key}`;
const client =
  kind === 'ws'
    ? createWsClient({ url, webSocketImpl: WebSocket, connectionParams: { Authorization: authorization }, retryAttempts: 0, lazy: true })
    : createSseClient({ url, headers: { Authorization: authorization }, retryAttempts: 0 });

let seen = 0;
for await (const result of client.iterate({ query, variables: JSON.parse(variables) })) {
  console.log(JSON.stringify(result));
  seen += 1;
  if (seen >= Number(most)) break;
}
await client.dispose();
process.exit(0);
