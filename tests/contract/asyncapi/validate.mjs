// Parses an AsyncAPI document; exit status 1 and what is wrong with it, when anything is.
import { readFile } from "node:fs/promises";
import { Parser } from "@asyncapi/parser";
import { AvroSchemaParser } from "@asyncapi/avro-schema-parser";

const parser = new Parser();
parser.registerSchemaParser(AvroSchemaParser());
const { document, diagnostics } = await parser.parse(await readFile(process.argv[2], "utf8"));
const problems = diagnostics.filter((each) => each.severity <= 1); // errors and warnings
for (const { path, message } of problems) {
  console.error(`${path.join("/")}: ${message}`);
}
if (document === undefined || problems.length > 0) {
  process.exit(1);
}
console.log(JSON.stringify({ channels: document.channels().all().length, operations: document.operations().all().length }));
