"""Pages that are cut off, lie about their length, have no end, or a million label values: told of, bounded, the rest used."""

from __future__ import annotations

import socket
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.telemetry.sources import pages
from penstock.telemetry.sources.exporters import NODE_EXPORTER_KEEP, dcgm
from penstock.telemetry.sources.pages import MAX_LABEL, MAX_SERIES, Page, parse
from penstock.telemetry.spec import Reading
from tests.telemetry.sources.contract import NOW, sound
from tests.telemetry.sources.planted import page, recorded

DCGM = recorded("dcgm.txt")


def test_a_page_that_is_cut_off_in_the_middle_is_told_of_and_its_whole_lines_are_used() -> None:
    whole, _ = parse(DCGM)
    half = DCGM[: len(DCGM) // 2]
    points, problem = parse(half)
    assert "cut off in the middle of a line" in problem
    assert points == whole[: len(points)] and len(points) == sum(
        not line.startswith("#") for line in half.split("\n")[:-1]
    )


@given(st.integers(0, len(DCGM)))
def test_wherever_it_is_cut_no_value_is_made_up(at: int) -> None:
    whole = {(one.name, one.labels): one.value for one in parse(DCGM)[0]}
    points, problem = parse(DCGM[:at])
    assert all(whole[one.name, one.labels] == one.value for one in points)
    assert problem or DCGM[:at].endswith("\n") or not at


def test_a_page_shorter_than_it_said() -> None:
    with page(DCGM[:5000].encode(), length=20_000) as url:
        reading = dcgm(url).read(NOW)
    assert reading.points
    assert "breaks off" in reading.problem


def test_a_million_label_values_are_bounded() -> None:
    text = "".join(f'DCGM_FI_DEV_GPU_TEMP{{gpu="0",UUID="GPU-{number}"}} 40\n' for number in range(100_000))
    with page(text.encode()) as url:
        reading = dcgm(url).read(NOW)
    sound(reading)
    assert len(reading.points) == MAX_SERIES and "samples are left out" in reading.problem


def test_a_label_without_end_is_cut() -> None:
    points, problem = parse(f'a{{x="{"y" * 100_000}"}} 1\n')
    assert not problem and len(points[0].labels[0][1]) <= MAX_LABEL


def test_a_page_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_BODY", 100_000)
    with page(b"a 1\n" * 100_000) as url:
        reading = Page("x", url).read(NOW)
    assert reading.points and "longer than 100000 bytes" in reading.problem


def test_bad_lines_are_counted_and_the_good_ones_used() -> None:
    points, problem = parse('# TYPE a counter\na_total 1\nb{x="} 2\nc nonsense\nd 4\n\x00\xff\n')
    assert {(one.name, one.value) for one in points} == {("a_total", 1.0), ("d", 4.0)}
    assert problem == "3 lines are no samples"


def test_only_what_is_kept_is_read_of_a_node_exporters_page() -> None:
    points, problem = parse(recorded("node_exporter.txt"), NODE_EXPORTER_KEEP)
    assert not problem and points
    assert all(one.name.startswith(NODE_EXPORTER_KEEP) for one in points)


@pytest.mark.parametrize("status", [404, 500, 302])
def test_a_page_that_is_none(status: int) -> None:
    with page(b"no", status=status) as url:
        reading = Page("x", url).read(NOW)
    assert not reading.points and str(status) in reading.problem


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\x00" * 100]
)
def test_what_is_no_http_is_told_of(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def once() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = Thread(target=once)
        thread.start()
        reading = Page("x", f"http://127.0.0.1:{server.getsockname()[1]}/metrics").read(NOW)
        thread.join()
    assert not reading.points
    assert reading.problem or answer.startswith(b"HTTP")


def test_a_url_that_is_none() -> None:
    assert Page("x", "http://127.0.0.1:99999/").read(NOW).problem
    assert isinstance(Page("x", "nonsense").read(NOW), Reading)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    points, problem = parse(text)
    sound(Reading("x", NOW, points, problem=problem))
