"""Traces, for who wants them (OpenTelemetry): one span tree for a beacon, from its request to its delivery.

The whole tree is told here, after the fact: a collector only keeps the request's `traceparent` with the hit. All ids are made
from the hit, so that attempts before and after a restart are of one tree; nothing is drawn by chance. Which beacons are told
is decided by the trace's id (as TraceIdRatioBased does), whatever the request says: its sender may be anybody.

Where they go is set by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and so on). No span has anything of a visitor.
"""

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from proxy import hit as hits
from proxy.delivery import Final
from proxy.forward.config import CannotTrace
from proxy.forward.watch import RETRY, Seen
from proxy.hit import Hit
from proxy.outcome import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

KINDS = {"e": "event", "s": "properties", "a": "alias"}
NS_A_MS = 1_000_000


class Traces:
    """Tells a share `ratio` of all beacons. Raises CannotTrace."""

    def __init__(self, ratio: float) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError:
            raise CannotTrace(
                f"trace_ratio: found {ratio:g}, and OpenTelemetry is not installed; "
                "expected the extra: pip install 'beacon-proxy[traces]', or trace_ratio = 0"
            ) from None
        self._below = int(ratio * 2**64)
        self._resource = Resource.create({"service.name": "beacon-proxy"})  # OTEL_SERVICE_NAME and the like win
        self._scope = InstrumentationScope("beacon-proxy")
        self._out = BatchSpanProcessor(OTLPSpanExporter())

    def tell(self, seen: Seen, took_ms: float, upstream: str) -> None:
        """After an attempt, or the end of a hit that was never sent (`seen.request` None)."""
        hit = seen.hit
        digest = blake2b(hits.encode(hit), digest_size=24).digest()
        trace_id, parent_id = _from_request(hit)
        trace_id = trace_id or int.from_bytes(digest[:16])
        if trace_id & (2**64 - 1) >= self._below:
            return
        root = _context(trace_id, int.from_bytes(digest[16:]))
        ended = seen.at_ms * NS_A_MS
        began = ended - int(took_ms * NS_A_MS)
        received = min(hit.received_ms * NS_A_MS, began)
        outcome = seen.verdict.outcome if isinstance(seen.verdict, Final) else None
        facts: dict[str, str | int] = {"beacon.site": hit.site, "beacon.kind": KINDS.get(hit.kind, hit.kind)}
        if seen.request is not None:
            told = {**facts, "beacon.attempt": seen.attempt, "beacon.verdict": outcome or RETRY, "server.address": upstream}
            told |= _answer(seen.verdict.answer)
            failed = outcome is not Outcome.DELIVERED
            self._end("attempt", root, _child(root, digest, began), began, ended, told, client=True, failed=failed)
        if outcome is not None:
            parent = _context(trace_id, parent_id, remote=True) if parent_id else None
            told = {**facts, "beacon.outcome": outcome, "beacon.attempts": seen.attempt}
            self._end("spooled", root, _child(root, digest, 0), received, began, facts)
            self._end("beacon", parent, root, received, ended, told, failed=outcome is not Outcome.DELIVERED)

    def close(self) -> None:
        """Send what has gathered, within a few seconds."""
        self._out.shutdown()  # type: ignore[no-untyped-call]

    def _end(
        self,
        name: str,
        parent: "SpanContext | None",
        context: "SpanContext",
        began: int,
        ended: int,
        facts: dict[str, Any],
        client: bool = False,
        failed: bool = False,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.status import Status, StatusCode

        kind = SpanKind.CLIENT if client else SpanKind.SERVER if name == "beacon" else SpanKind.INTERNAL
        span: ReadableSpan = ReadableSpan(
            name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=facts,
            kind=kind,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=began,
            end_time=ended,
            instrumentation_scope=self._scope,
        )
        self._out.on_end(span)


def _from_request(hit: Hit) -> tuple[int, int]:
    """Trace and span of the request's `traceparent` (W3C Trace Context), as the collector kept it; 0, 0 without one."""
    parts = hit.trace.split("-")
    return (int(parts[1], 16), int(parts[2], 16)) if len(parts) == 4 else (0, 0)


def _answer(answer: str) -> dict[str, str | int]:
    return {"http.response.status_code": int(answer)} if answer.isdigit() else {"error.type": answer or "none"}


def _child(root: "SpanContext", digest: bytes, number: int) -> "SpanContext":
    """`number` tells a tree's children apart. For an attempt it is its time: one that was not the hit's fault is not counted."""
    own = blake2b(digest + number.to_bytes(8), digest_size=8).digest()
    return _context(root.trace_id, int.from_bytes(own))


def _context(trace_id: int, span_id: int, remote: bool = False) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace_id, span_id, remote, TraceFlags(TraceFlags.SAMPLED))
