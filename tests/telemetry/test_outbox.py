"""What waits for the server: bounded, oldest samples first out, and whatever fails, in the end each thing arrived once."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.telemetry.outbox import KEPT_FINDINGS, Outbox
from penstock.telemetry.push import MAX_ROWS, MAX_SERIES, Answer, Push, decode, encode
from penstock.telemetry.sources.pages import parse
from penstock.telemetry.spec import Finding, Point, Severity
from tests.telemetry.sources.planted import recorded

POWER = Point("penstock_gpu_power_watts", 400.0, (("gpu", "0"), ("uuid", "GPU-1")))
NOT_KEPT = Point("penstock_gpu_process_memory_bytes", 1.0, (("pid", "7"),))


def outbox() -> Outbox:
    return Outbox("n0", "b0", "r0", "1.0")


def finding(code: str, count: int = 1, severity: Severity = Severity.WARNING) -> Finding:
    return Finding("Xid", "n0", 1.0 + count, 1.0, "m", severity, "0000:1b:00.0", code, count)


def test_nothing_to_say_is_no_push() -> None:
    assert outbox().next(1.0) is None


def test_names_are_sent_once_and_again_when_they_are_wanted() -> None:
    box = outbox()
    box.sample(1.0, [POWER, NOT_KEPT])
    first = box.next(2.0)
    assert first is not None and first.series is not None and [one.name for one in first.series] == [POWER.name]
    assert box.next(3.0) == replace(first, at=3.0)  # until something is heard of it
    box.taken(first, Answer(1))
    box.sample(11.0, [POWER])
    second = box.next(12.0)
    assert second is not None and (second.series, second.digest, second.sequence) == (None, first.digest, 2)
    box.taken(second, Answer(1, series_wanted=True))
    again = box.next(13.0)
    assert again is not None and again.series == first.series and again.rows == second.rows and again.sequence == 2


def test_a_series_that_is_silent_keeps_its_place() -> None:
    box = outbox()
    other = replace(POWER, labels=(("gpu", "1"), ("uuid", "GPU-2")))
    for at, points in enumerate(([POWER, other], [other], [POWER])):
        box.sample(float(at), points)
    push = box.next(9.0)
    assert push is not None and [row.values for row in push.rows] == [(400.0, 400.0), (None, 400.0), (400.0, None)]


def test_rows_of_other_series_are_another_push() -> None:
    box = outbox()
    box.sample(1.0, [POWER])
    box.sample(2.0, [POWER, Point("penstock_node_clock_offset_seconds", 0.1)])
    first = box.next(3.0)
    assert first is not None and len(first.rows) == 1
    box.taken(first, Answer(1))
    second = box.next(4.0)
    assert second is not None and second.series is not None and len(second.series) == 2
    assert decode(encode(second)) == second


def test_the_oldest_samples_go_first_and_findings_stay() -> None:
    box = outbox()
    for number in range(KEPT_FINDINGS + 50):
        box.tell([finding(str(number), severity=Severity.CRITICAL if number == 0 else Severity.INFO)])
    for number in range(MAX_ROWS + 7):
        box.sample(float(number), [POWER])
    assert (len(box), box.dropped_rows) == (MAX_ROWS, 7)
    assert (box.findings, box.dropped_findings) == (KEPT_FINDINGS, 50)
    push = box.next(9e5)
    assert push is not None and push.rows[0].at == 7.0
    assert push.findings[0].code == "0"
    decode(encode(push))


def test_the_newest_word_of_a_finding_is_the_one_that_is_sent() -> None:
    box = outbox()
    box.tell([finding("79", 1), finding("13")])
    push = box.next(1.0)
    assert push is not None
    box.tell([finding("79", 2)])  # while that push is on its way
    box.taken(push, Answer(1))
    after = box.next(2.0)
    assert after is not None and [(one.code, one.count) for one in after.findings] == [("79", 2)]


def test_devices_that_come_and_go_do_not_fill_it_for_ever() -> None:
    box = outbox()
    for number in range(3 * MAX_SERIES):
        labels = (("gpu", str(number)), ("uuid", f"GPU-{number}"))
        box.sample(float(number), [replace(POWER, labels=labels)])
    push = box.next(1.0)
    assert push is not None and push.series is not None and len(push.series) <= MAX_SERIES


def test_a_million_label_values_are_a_bounded_push() -> None:
    box = outbox()
    box.sample(1.0, (replace(POWER, labels=(("gpu", str(number)), ("uuid", str(number)))) for number in range(100_000)))
    push = box.next(1.0)
    assert push is not None and push.series is not None and len(push.series) == MAX_SERIES
    assert decode(encode(push)) == push


def test_each_cpu_of_an_exporter_is_counted() -> None:
    box = outbox()
    box.sample(1.0, parse(recorded("node_exporter.txt"))[0])
    push = box.next(1.0)
    assert push is not None and push.series is not None
    cpu = [one for one in push.series if one.name == "penstock_node_cpu_seconds_total"]
    assert {one.labels for one in cpu} >= {(("mode", "user"),), (("mode", "idle"),)}
    assert all(len(one.labels) == 1 for one in cpu)


class Server:
    """Takes a push once, and may forget the names of series."""

    def __init__(self) -> None:
        self.sequence = 0
        self.known = ""
        self.rows: list[float] = []
        self.findings: dict[str, int] = {}

    def take(self, sent: Push) -> Answer:
        push = decode(encode(sent))
        if push.sequence <= self.sequence:
            return Answer(self.sequence)
        if push.rows and push.series is None and push.digest != self.known:
            return Answer(self.sequence, series_wanted=True)
        self.known = push.digest if push.series is not None else self.known
        self.sequence = push.sequence
        self.rows += [row.at for row in push.rows]
        self.findings.update({one.code: one.count for one in push.findings})
        return Answer(self.sequence)


steps = st.lists(
    st.sampled_from(["sample", "sample more", "find", "send", "lost on its way", "answer lost", "forget"]), max_size=60
)


@given(steps)
def test_whatever_fails_each_row_arrives_once_and_each_finding_at_last(taken: list[str]) -> None:
    box, server, told, sampled = outbox(), Server(), {}, []
    for at, step in enumerate([*taken, *["send"] * 40]):
        if step.startswith("sample"):
            more = [Point("penstock_node_clock_offset_seconds", 0.1)] if step == "sample more" else []
            box.sample(float(at), [POWER, *more])
            sampled.append(float(at))
        elif step == "find":
            told[str(at % 3)] = at
            box.tell([finding(str(at % 3), at)])
        elif step == "forget":
            server.known = ""
        elif (push := box.next(float(at))) is not None and step != "lost on its way":
            answer = server.take(push)
            if step == "send":
                box.taken(push, answer)
    assert server.rows == sampled
    assert server.findings == told
    assert len(box) == box.findings == 0
