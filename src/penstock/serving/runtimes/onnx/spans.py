"""Where the time of one followed request went: in the queue, in its batch, in the model."""

from __future__ import annotations

from penstock.serving.otlp import SERVER, Exporter, Span, followed
from penstock.serving.runtimes.onnx.queue import Timing


def follow(
    exporter: Exporter, traceparent: bytes | str | None, model: str, span: tuple[int, int], timing: Timing
) -> None:
    """``span``: when the request was read and when its answer was there, by the clock on the wall. The parts are measured with a
    clock that never jumps; they are laid out so that the last of them ends with the answer.
    """
    parent = followed(traceparent)
    if parent is None:
        return
    into, infer, out = timing.compute
    begun, ended = span
    batched = max(begun, ended - (into + infer + out))
    queued = max(begun, batched - timing.queue)
    whole = Span("infer", parent, begun, ended, SERVER, {"penstock.model": model})
    batch = Span("batch", whole.own, batched, ended, attributes={"penstock.batch.rows": timing.rows})
    exporter.add(
        whole,
        Span("queue", whole.own, queued, batched),
        batch,
        Span("compute", batch.own, batched + into, max(batched + into, ended - out)),
    )
