"""Spans of requests as a collector on the loopback gets them."""

import gzip
import http.server
import threading

import pytest
from ferrule.runtime.server.live import Observers
from ferrule.runtime.server.traces import Traces, otlp_tracer
from scripted import ScriptRunner, serving
from test_errors import post

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces are an extra")
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector():
    """Where spans go, and those that came."""
    spans = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            spans.extend(s for r in message.resource_spans for p in r.scope_spans for s in p.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format, *arguments):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", spans
        server.shutdown()


def test_a_request_is_a_span_of_its_caller(tokenizer, collector):
    url, spans = collector
    tracer, provider = otlp_tracer(url)
    runner = ScriptRunner()
    with serving(tokenizer, {"fox": runner}) as running:
        front = running.service.models["fox"].front
        front.observer = Observers(front.observer, Traces(tracer, "fox"))
        body = {"prompt": "ab", "max_tokens": 5, "request_id": "mine", "n": 2}
        assert post(running, "/v1/completions", body, {"traceparent": PARENT})[0] == 200
        runner.broken = 97
        assert post(running, "/v1/completions", {"prompt": "a", "max_tokens": 5})[0] == 500
    provider.shutdown()
    good, bad = sorted(spans, key=lambda span: span.start_time_unix_nano)
    assert good.name == bad.name == "llm_request"
    assert good.trace_id.hex() == PARENT.split("-")[1]
    assert good.parent_span_id.hex() == PARENT.split("-")[2] and not bad.parent_span_id
    assert 0 < good.end_time_unix_nano - good.start_time_unix_nano < 60e9
    values = {a.key: a.value for a in good.attributes}
    assert values["gen_ai.request.id"].string_value == "mine"
    assert values["gen_ai.response.model"].string_value == "fox"
    assert values["gen_ai.usage.prompt_tokens"].int_value == 2
    assert values["gen_ai.usage.completion_tokens"].int_value == 10
    phases = [
        values[f"gen_ai.latency.time_in_{name}"].double_value
        for name in ("queue", "model_prefill", "model_decode")
    ]
    whole = values["gen_ai.latency.e2e"].double_value
    assert min(phases) >= 0 and sum(phases) == pytest.approx(whole, rel=1e-6)
    assert (good.status.code, bad.status.code) == (0, 2)
