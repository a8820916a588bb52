/** Prints as JSON how AsyncAPI's own parser reads the document in the file that it is given, and what it finds wrong. */

import { readFileSync } from "node:fs";
import { AvroSchemaParser } from "@asyncapi/avro-schema-parser";
import { Parser } from "@asyncapi/parser";

const text = readFileSync(process.argv[2], "utf-8");
const avro = AvroSchemaParser();
const parser = new Parser();
parser.registerSchemaParser(avro);
const { document, diagnostics } = await parser.parse(text);

/** Of a document of version 3 the parser reads Avro schemas without checking them, so this does it. */
async function avroFaults() {
  const payloads = Object.entries(JSON.parse(text).components.messages).map(([id, message]) => [id, message.payload]);
  const checked = payloads
    .filter(([, payload]) => avro.getMimeTypes().includes(payload.schemaFormat))
    .map(([id, payload]) => avro.validate({ data: payload.schema, path: [id] }));
  return (await Promise.all(checked)).flat();
}

function asRead(message) {
  return {
    id: message.id(),
    name: message.name(),
    contentType: message.contentType(),
    kafka: message.bindings().get("kafka")?.value(),
    correlationId: message.correlationId()?.location(),
    headers: message.headers()?.json(),
    payload: message.payload()?.json(),
    examples: message.examples().all().map((example) => ({ headers: example.headers(), payload: example.payload() })),
  };
}

const operations = document?.operations().all() ?? [];
console.log(
  JSON.stringify({
    diagnostics: diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path })),
    avroFaults: await avroFaults(),
    operations: operations.map((operation) => ({
      id: operation.id(),
      action: operation.action(),
      address: operation.channels().all()[0].address(),
      messages: operation.messages().all().map((message) => message.id()),
    })),
    messages: (document?.allMessages().all() ?? []).map(asRead),
  }),
);
