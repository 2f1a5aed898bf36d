"""The ground: OpenTelemetry set-up, names of spans and attributes, the trace store, reports."""
