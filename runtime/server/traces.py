"""OpenTelemetry traces: a span for each request, with the names of vLLM's.

An extra: `pip install ferrule[otel]`. Spans are children of the caller's, where a request carries a
`traceparent` header.
"""

import importlib
import time
from collections.abc import Mapping
from typing import Any

from ..engine import Delta
from ..errors import RequestError
from .front import Record

HEADERS = ("traceparent", "tracestate")


def otlp_tracer(endpoint: str) -> tuple[Any, Any]:
    """A tracer that sends spans to an OTLP collector over HTTP, and its provider, to be shut down
    at the end. Raises `RequestError` where the extra is not installed.
    """
    try:
        exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        resources = importlib.import_module("opentelemetry.sdk.resources")
    except ImportError as error:
        raise RequestError(f"traces need pip install ferrule[otel]: {error}") from None
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "ferrule"}))
    sender = exporter.OTLPSpanExporter(endpoint=endpoint)
    provider.add_span_processor(export.BatchSpanProcessor(sender))
    return provider.get_tracer("ferrule.server"), provider


class Traces:
    """Observes a front and writes a span for each of its requests when it ends."""

    def __init__(self, tracer: Any, model: str) -> None:
        self._tracer, self._model = tracer, model
        self._trace = importlib.import_module("opentelemetry.trace")
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self._headers = propagation.TraceContextTextMapPropagator()

    def arrived(self, record: Record) -> None:
        """A span begins here, and is written at its end."""

    def gave(self, record: Record, delta: Delta, now: float) -> None:
        """Tokens show in the counts at the end."""

    def stepped(self, tokens: int, now: float) -> None:
        """Steps belong to no request."""

    def ended(self, record: Record) -> None:
        """Write the span of a request."""
        finished = record.finished or record.arrived
        end = time.time_ns()  # spans have the time of the wall, records that of a clock
        begin = end - round((finished - record.arrived) * 1e9)
        span = self._tracer.start_span(
            "llm_request",
            context=self._headers.extract(record.trace),
            kind=self._trace.SpanKind.SERVER,
            start_time=begin,
            attributes=self._attributes(record, finished),
        )
        if record.reason == "error":
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(end_time=end)

    def _attributes(self, record: Record, finished: float) -> Mapping[str, Any]:
        values = {
            "gen_ai.response.model": self._model,
            "gen_ai.request.id": record.id,
            "gen_ai.request.n": record.sequences,
            "gen_ai.request.max_tokens": record.max_tokens,
            "gen_ai.usage.prompt_tokens": record.prompt_tokens,
            "gen_ai.usage.cached_tokens": record.cached_tokens,
            "gen_ai.usage.completion_tokens": record.generated_tokens,
            "gen_ai.response.finish_reason": record.reason,
            "gen_ai.latency.e2e": finished - record.arrived,
            **_phases(record, finished),
        }
        return {name: value for name, value in values.items() if value is not None}


def _phases(record: Record, finished: float) -> dict[str, float]:
    """Seconds of what happened to a request, one after another."""
    found: dict[str, float] = {}
    if record.first_token is not None:
        found["gen_ai.latency.time_to_first_token"] = record.first_token - record.arrived
        found["gen_ai.latency.time_in_model_decode"] = finished - record.first_token
        if record.started is not None:
            prefill = record.first_token - record.started
            found["gen_ai.latency.time_in_model_prefill"] = prefill
    if record.started is not None:
        found["gen_ai.latency.time_in_queue"] = record.started - record.arrived
        found["gen_ai.latency.time_in_model_inference"] = finished - record.started
    return found
