// Counts the rows of files, a task that a Letta agent follows: node import_files.js FILE...
import { readFile } from "node:fs/promises";
import { SpanStatusCode, trace } from "@opentelemetry/api";
import { logs } from "@opentelemetry/api-logs";
import { NodeSDK } from "@opentelemetry/sdk-node";

const sdk = new NodeSDK({ serviceName: "importer" }); // sends by OTLP/HTTP, to OTEL_EXPORTER_OTLP_ENDPOINT
sdk.start();
const task = { "letta.task.name": "Import files", "letta.chat.id": "chat-123", "letta.message.id": "msg-456" };

// A span is sent when it has ended; an event is sent while the span that it belongs to, the active one, is open.
const progress = (share, content) =>
  logs.getLogger("importer").emit({
    eventName: "letta.task.progress",
    attributes: { ...task, "letta.task.progress": share, "letta.task.content": content },
  });

const files = process.argv.slice(2);
await trace.getTracer("importer").startActiveSpan("Import files", { attributes: task }, async (span) => {
  try {
    let rows = 0;
    for (const [done, file] of files.entries()) {
      progress(done / files.length, `Reading file ${done + 1} of ${files.length}`);
      rows += (await readFile(file, "utf8")).split("\n").length - 1;
    }
    span.setAttribute("letta.task.result", `${rows} rows`);
  } catch (error) {
    span.recordException(error);
    span.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
    process.exitCode = 1;
  } finally {
    span.end();
  }
});
await sdk.shutdown(); // sends what is left
