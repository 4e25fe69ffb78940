import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.logs.Logger;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.context.Scope;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.autoconfigure.AutoConfiguredOpenTelemetrySdk;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;

/** Counts the rows of files, a task that a Letta agent follows: java ImportFiles FILE... */
public class ImportFiles {
  static final Attributes TASK =
      Attributes.builder()
          .put("letta.task.name", "Import files")
          .put("letta.chat.id", "chat-123")
          .put("letta.message.id", "msg-456")
          .build();

  public static void main(String[] files) {
    boolean failed = false;
    // Sends by OTLP/HTTP to OTEL_EXPORTER_OTLP_ENDPOINT; closing it sends what is left.
    try (OpenTelemetrySdk sdk = sdk()) {
      Logger logger = sdk.getSdkLoggerProvider().get("importer");
      Span span = sdk.getTracer("importer").spanBuilder("Import files").setAllAttributes(TASK).startSpan();
      try (Scope scope = span.makeCurrent()) {
        long rows = 0;
        for (int done = 0; done < files.length; done++) {
          String content = "Reading file %d of %d".formatted(done + 1, files.length);
          progress(logger, (double) done / files.length, content);
          rows += Files.readString(Path.of(files[done])).chars().filter(c -> c == '\n').count();
        }
        span.setAttribute("letta.task.result", rows + " rows");
      } catch (Exception error) {
        span.recordException(error).setStatus(StatusCode.ERROR, error.toString());
        failed = true;
      } finally {
        span.end();
      }
    }
    System.exit(failed ? 1 : 0);
  }

  /** A span is sent when it has ended; an event is sent while its span, the current one, is open. */
  static void progress(Logger logger, double share, String content) {
    logger
        .logRecordBuilder()
        .setEventName("letta.task.progress")
        .setAllAttributes(TASK)
        .setAttribute(AttributeKey.doubleKey("letta.task.progress"), share)
        .setAttribute(AttributeKey.stringKey("letta.task.content"), content)
        .emit();
  }

  static OpenTelemetrySdk sdk() {
    Map<String, String> defaults =
        Map.of(
            "otel.service.name", "importer",
            "otel.exporter.otlp.protocol", "http/protobuf",
            "otel.metrics.exporter", "none");
    return AutoConfiguredOpenTelemetrySdk.builder()
        .disableShutdownHook() // main closes it
        .addPropertiesSupplier(() -> defaults)
        .build()
        .getOpenTelemetrySdk();
  }
}
