// Publishes one NotificationRequest with kafkajs and avsc:
//
//   npm ci && node publish.mjs 127.0.0.1:9092 u1 order-shipped '{"order": "A1"}'
//
// It prints the id once every in-sync replica has the record. The schema and its id come from the schemas folder
// (SCHEMAS, else ../../../schemas).
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import avsc from "avsc";
import { Kafka, Partitioners, logLevel } from "kafkajs";

const TENANT = "default";
const TOPIC = "notify.requests.normal.v1";
const SCHEMAS = process.env.SCHEMAS ?? fileURLToPath(new URL("../../../schemas", import.meta.url));

/** The Avro type of a record, and the id that the manifest gives it. */
function schema(record) {
  const { id, file } = JSON.parse(readFileSync(join(SCHEMAS, "manifest.json"), "utf8"))[record];
  return { id, type: avsc.Type.forSchema(JSON.parse(readFileSync(join(SCHEMAS, file), "utf8"))) };
}

/** Confluent's framing: 0, the schema id in 4 bytes, the Avro body. */
function frame({ id, type }, record) {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(id, 1);
  return Buffer.concat([head, type.toBuffer(record)]);
}

/** A UUIDv7: the time in milliseconds in 48 bits, then version, variant and chance. */
function uuid7(milliseconds) {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(milliseconds, 0, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

async function publish(brokers, user, template, data) {
  const acceptedAt = Date.now();
  const notificationId = uuid7(acceptedAt); // its time must be accepted_at
  const value = frame(schema("NotificationRequest"), {
    notification_id: notificationId,
    tenant: TENANT,
    accepted_at: acceptedAt,
    user_id: user,
    template_id: template,
    data: Buffer.from(data),
    source: "node-example", // what is not given here has a default
  });
  const kafka = new Kafka({ clientId: "node-example", brokers, logLevel: logLevel.ERROR });
  // kafkajs 2 partitions keys like Java (murmur2) by default; version 1 did not.
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, idempotent: true });
  await producer.connect();
  try {
    await producer.send({ topic: TOPIC, acks: -1, messages: [{ key: `${TENANT}:${user}`, value }] });
  } finally {
    await producer.disconnect();
  }
  return notificationId;
}

const [bootstrap, user, template, data = "{}"] = process.argv.slice(2);
if (template === undefined) {
  console.error("usage: node publish.mjs BOOTSTRAP USER_ID TEMPLATE_ID [DATA]");
  process.exit(2);
}
console.log(await publish(bootstrap.split(","), user, template, data));
