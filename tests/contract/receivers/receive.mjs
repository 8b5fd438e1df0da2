// Receives what Heliograph posts, one JSON object a line on stdin, and says a line for each what became of it:
//   {"kind": "webhook", "secret", "headers", "body"}   {"body": the verified JSON} or {"refused": why}
//   {"kind": "svix", …}                                 the same by svix
//   {"kind": "teams", "body"}                           {"card": the card as it was understood, "faults": [what was wrong with it]}
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { Webhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";

const { AdaptiveCard, SerializationContext } = createRequire(import.meta.url)("adaptivecards/dist/adaptivecards.js");

function verified(Verifier, { secret, headers, body }) {
  try {
    return { body: new Verifier(secret).verify(body, headers) ?? JSON.parse(body) }; // svix returns nothing
  } catch (error) {
    return { refused: error.message };
  }
}

const receive = {
  webhook: (posted) => verified(Webhook, posted),
  svix: (posted) => verified(SvixWebhook, posted),
  teams({ body }) {
    const context = new SerializationContext();
    const card = new AdaptiveCard();
    card.parse(JSON.parse(body).attachments[0].content, context);
    const faults = Array.from({ length: context.eventCount }, (_, i) => context.getEventAt(i).message);
    return { card: card.toJSON(), faults: [...faults, ...card.validateProperties().validationEvents.map((e) => e.message)] };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const posted = JSON.parse(line);
  console.log(JSON.stringify(receive[posted.kind](posted)));
}
