"""One job alone writes to a prefix of an object store, whether the store keeps conditions on a put or not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from penstock.worker.checkpoint.bucket import Bucket, Patience
from penstock.worker.checkpoint.claim import OWNER, Rhythm
from penstock.worker.checkpoint.errors import FolderInUse
from penstock.worker.checkpoint.public import Options
from tests.worker.checkpoint.s3_server import KEY, S3Server
from tests.worker.checkpoint.test_bucket import newest
from tests.worker.checkpoint.training import Training

pytestmark = pytest.mark.real

URL = "s3://models/run/7"
RHYTHM = Rhythm(beat_s=0.05, dead_after_s=600, settle_s=0.3)


@pytest.fixture(params=["rclone", "moto"])
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[S3Server]:
    for name, value in (("ACCESS_KEY_ID", KEY[0]), ("SECRET_ACCESS_KEY", KEY[1]), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = S3Server(request.param, tmp_path / "s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.close()


def bucket(job: str = "", rhythm: Rhythm = RHYTHM) -> Bucket:
    return Bucket(URL, 2, None, Patience(part=16384, rhythm=rhythm), {"job": job, "attempt": 1})


def store() -> S3Store:
    return S3Store.from_url(URL, client_options={"allow_http": True})


def owner() -> dict[str, Any]:
    said: dict[str, Any] = json.loads(obstore.get(store(), OWNER).bytes().to_bytes())
    return said


def claimed_by(**what: Any) -> None:
    body = {"job": "01A", "attempt": 1, "host": "another", "pid": 1, "token": "theirs", **what}
    obstore.put(store(), OWNER, json.dumps(body).encode(), use_multipart=False)


def test_two_jobs_given_one_prefix_are_refused(tmp_path: Path, s3: S3Server) -> None:
    entry = newest(tmp_path)
    with closing(bucket("01A")) as first:
        assert first.promote(entry)
        second = bucket("01B")
        with pytest.raises(FolderInUse, match=r"s3://models/run/7 is in use by job 01A \(process \d+ on "):
            second.promote(entry)
        second.close()  # takes nothing from its owner
        assert owner()["job"] == "01A"
    with closing(bucket("01B")) as third:
        third.take()


def test_a_training_is_refused_at_its_start(tmp_path: Path, s3: S3Server) -> None:
    claimed_by(job="01Z")
    with pytest.raises(FolderInUse, match="is in use by job 01Z"):
        Training().checkpointer(tmp_path / "c", Options(tiers=(URL,)))
    Training().checkpointer(tmp_path / "c").close()  # its own folder was let go


def test_of_many_at_once_one_has_it(s3: S3Server) -> None:
    tiers = [bucket(f"01{index}") for index in range(6)]
    refused: list[str] = []

    def take(tier: Bucket) -> None:
        try:
            tier.take()
        except FolderInUse as error:
            refused.append(error.message)

    threads = [threading.Thread(target=take, args=(tier,)) for tier in tiers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    for tier in tiers:
        tier.close()


def test_an_owner_that_beats_keeps_it_and_one_that_stopped_loses_it(s3: S3Server) -> None:
    claimed_by()
    quick = Rhythm(beat_s=0.05, dead_after_s=1.5, settle_s=0.05)
    with pytest.raises(FolderInUse):
        bucket("01B", quick).take()
    until = time.monotonic() + 30
    while True:
        late = bucket("01B", quick)
        try:
            late.take()
            break
        except FolderInUse:
            assert time.monotonic() < until
            time.sleep(0.1)
    time.sleep(2)  # longer than an owner without a heartbeat lives
    claimant = bucket("01C", quick)
    with pytest.raises(FolderInUse, match="job 01B"):
        claimant.take()
    late.close()


def test_an_earlier_attempt_of_the_job_elsewhere_gives_way_at_once(s3: S3Server) -> None:
    claimed_by(job="01B")
    with closing(bucket("01B")) as tier:
        tier.take()
        assert owner()["host"] != "another"


def test_who_lost_it_writes_nothing_more(tmp_path: Path, s3: S3Server) -> None:
    entry = newest(tmp_path)
    tier = bucket("01A")
    tier.take()
    claimed_by(job="01B")
    with pytest.raises(FolderInUse, match="was taken over by job 01B"):
        tier.promote(entry)
    assert tier.entries() == []
    tier.close()
    assert owner()["job"] == "01B"


def test_a_process_that_was_killed_here_is_no_owner(tmp_path: Path, s3: S3Server) -> None:
    script = f"""
        import os, signal
        from penstock.worker.checkpoint.bucket import Bucket
        Bucket({URL!r}, 2, None, owner={{"job": ""}}).take()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=60)
    assert owner()["job"] == ""
    with closing(bucket("")) as tier:
        tier.take()
