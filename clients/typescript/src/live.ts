// Where a stream of live status is, and what of it is new, through every connection.

import type { components } from "./schema.js";

type Schemas = components["schemas"];

/** As docs/live.md says; `id` is the place after it. */
export type LiveEvent = { id: string } & (
  | { kind: "snapshot"; data: { notification: Schemas["NotificationStatus"]; events: Schemas["Event"][]; complete: boolean } }
  | {
      kind: "status";
      data: { event: Schemas["Event"]; notification: { id: string; status: string; reason: string | null }; settled: boolean };
    }
  | { kind: "gap"; data: { missed: number; reason?: never } }
  | { kind: "reset" | "end"; data: { reason: string } }
);

export interface Sent {
  kind: string;
  id: string;
  data: string;
}

const FINAL = "end"; // the id of an event that nothing follows

/** The events of a stream; those that only say where it is have no kind. `heard` is called for every piece that comes. */
export async function* parsed(body: ReadableStream<Uint8Array>, heard: () => void): AsyncGenerator<Sent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let left = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const blocks = (left + decoder.decode(value, { stream: true })).split("\n\n");
      left = blocks.pop() ?? "";
      for (const block of blocks) {
        const sent: Sent = { kind: "", id: "", data: "" };
        for (const line of block.split("\n")) {
          if (line.startsWith("event: ")) sent.kind = line.slice(7);
          else if (line.startsWith("id: ")) sent.id = line.slice(4);
          else if (line.startsWith("data: ")) sent.data = line.slice(6);
        }
        if (sent.kind !== "" || sent.id !== "") yield sent;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined); // the connection may be gone already
  }
}

/** Joins connections to one stream: it goes on behind the last event, and of notifications no fact is told twice. */
export function joined(ofIds: boolean, after: string | undefined) {
  const told = new Set<string>();
  return {
    last: after,
    over: false,
    take(sent: Sent): LiveEvent | undefined {
      if (sent.id !== "") this.last = sent.id;
      if (sent.kind === "") return undefined;
      const event = { kind: sent.kind, id: sent.id, data: JSON.parse(sent.data) } as LiveEvent;
      if (event.kind === "end") {
        this.over = sent.id === FINAL;
        return this.over ? event : undefined; // others say to come back
      }
      if (ofIds && event.kind === "snapshot") for (const fact of event.data.events) told.add(fact.id);
      if (ofIds && event.kind === "status") {
        if (told.has(event.data.event.id)) return undefined;
        told.add(event.data.event.id);
      }
      return event;
    },
  };
}
