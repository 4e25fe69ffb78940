// Counts the rows of files, a task that a Letta agent follows: import_files FILE...
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

var task = []attribute.KeyValue{
	attribute.String("letta.task.name", "Import files"),
	attribute.String("letta.chat.id", "chat-123"),
	attribute.String("letta.message.id", "msg-456"),
}

// A span is sent when it has ended; an event is sent while the span that it belongs to, that of ctx, is open.
func progress(ctx context.Context, logger log.Logger, share float64, content string) {
	var event log.Record
	event.SetEventName("letta.task.progress")
	event.AddAttributes(task...)
	event.AddAttributes(
		attribute.Float64("letta.task.progress", share), attribute.String("letta.task.content", content))
	logger.Emit(ctx, event)
}

func importFiles(ctx context.Context, logger log.Logger, files []string) (rows int, err error) {
	for done, file := range files {
		progress(ctx, logger, float64(done)/float64(len(files)), fmt.Sprintf("Reading file %d of %d", done+1, len(files)))
		text, err := os.ReadFile(file)
		if err != nil {
			return rows, err
		}
		rows += bytes.Count(text, []byte("\n"))
	}
	return rows, nil
}

func main() {
	os.Exit(run(context.Background(), os.Args[1:]))
}

func run(ctx context.Context, files []string) int {
	spans, err := otlptracehttp.New(ctx) // sends to OTEL_EXPORTER_OTLP_ENDPOINT, as the other one
	events, logsErr := otlploghttp.New(ctx)
	if err := errors.Join(err, logsErr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	service := resource.NewSchemaless(attribute.String("service.name", "importer"))
	tracing := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans), sdktrace.WithResource(service))
	logging := sdklog.NewLoggerProvider(
		sdklog.WithProcessor(sdklog.NewBatchProcessor(events)), sdklog.WithResource(service))
	defer tracing.Shutdown(ctx) // sends what is left
	defer logging.Shutdown(ctx)

	ctx, span := tracing.Tracer("importer").Start(ctx, "Import files", trace.WithAttributes(task...))
	defer span.End() // before the shutdowns: deferred calls run last in, first out
	rows, err := importFiles(ctx, logging.Logger("importer"), files)
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
		return 1
	}
	span.SetAttributes(attribute.String("letta.task.result", fmt.Sprintf("%d rows", rows)))
	return 0
}
