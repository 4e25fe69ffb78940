// An agent made with the AI SDK, traced as its documentation says: spans by OTLP, content included.
// Arguments: the prompt. MODEL_URL is the model; the tools are those of the script that it follows.
import { createRequire } from 'node:module';
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

// The packages are in a cache, not beside this file.
const { resolve } = createRequire(`${process.env.PACKAGES}/package.json`);
const from = (name) => import(pathToFileURL(resolve(name)).href);
const { generateText, stepCountIs, tool } = await from('ai');
const { createOpenAICompatible } = await from('@ai-sdk/openai-compatible');
const { NodeTracerProvider, BatchSpanProcessor } = await from('@opentelemetry/sdk-trace-node');
const { detectResources, envDetector, resourceFromAttributes } = await from('@opentelemetry/resources');
const { OTLPTraceExporter } = await from('@opentelemetry/exporter-trace-otlp-proto');
const { z } = await from('zod');

const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ 'service.name': 'notes-reader' }).merge(
    detectResources({ detectors: [envDetector] }), // what OTEL_RESOURCE_ATTRIBUTES says
  ),
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
});
provider.register();

const interrupted = new AbortController();
process.once('SIGINT', () => interrupted.abort());

const read_notes = tool({
  description: 'Read a file.',
  inputSchema: z.object({ file: z.string() }),
  execute: ({ file }) => readFile(file, 'utf8'),
});
const run_shell = tool({
  description: 'Run a command.',
  inputSchema: z.object({ command: z.string() }),
  execute: async ({ command }, { abortSignal }) =>
    (await promisify(execFile)('sh', ['-c', command], { signal: abortSignal })).stdout,
});

const model = createOpenAICompatible({ name: 'scripted', baseURL: `${process.env.MODEL_URL}/v1`, apiKey: 'scripted' });
try {
  const { text } = await generateText({
    model: model('scripted'),
    prompt: process.argv[2],
    tools: { read_notes, run_shell },
    stopWhen: stepCountIs(5),
    maxRetries: 0,
    abortSignal: interrupted.signal,
    experimental_telemetry: { isEnabled: true, functionId: 'notes-reader', metadata: { sessionId: 'session-1' } },
  });
  console.log(text);
} catch (error) {
  console.error(`${error}`);
  process.exitCode = 1;
} finally {
  await provider.shutdown();
}
