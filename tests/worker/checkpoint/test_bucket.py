"""A tier in S3, on a server that speaks it: whole copies, resumed, limited, loaded from; and what a bad store does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import obstore
import pytest
import torch
from obstore.store import S3Store

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.bucket import Bucket, Patience
from penstock.worker.checkpoint.claim import OWNER, Rhythm
from penstock.worker.checkpoint.errors import CheckpointError, Damaged
from penstock.worker.checkpoint.public import Options, verify
from tests.worker.checkpoint.s3_server import KEY, S3Server
from tests.worker.checkpoint.test_faults import two_checkpoints
from tests.worker.checkpoint.training import Training

pytestmark = pytest.mark.real

QUICK = Patience(timeout_s=0.5, retries=2, retry_for_s=10, part=16384, rhythm=Rhythm(settle_s=0.02))
URL = "s3://models/run/7"


@pytest.fixture(params=["rclone"])
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[S3Server]:
    for name, value in (("ACCESS_KEY_ID", KEY[0]), ("SECRET_ACCESS_KEY", KEY[1]), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = S3Server(request.param, tmp_path / "s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.close()


def raw(s3: S3Server) -> S3Store:
    return S3Store.from_url(URL, client_options={"allow_http": True})


def keys(s3: S3Server) -> dict[str, int]:
    return {item["path"]: item["size"] for batch in obstore.list(raw(s3)) for item in batch}


def copied(entry: folder.Entry, keep: int = 2) -> None:
    """As a job copies it that ends then."""
    with closing(Bucket(URL, keep, None, QUICK)) as tier:
        assert tier.promote(entry)


def newest(tmp_path: Path) -> folder.Entry:
    two_checkpoints(tmp_path / "c")
    return folder.entries(str(tmp_path / "c"))[-1]


def test_a_copy_is_whole_and_comes_back(tmp_path: Path, s3: S3Server) -> None:
    entry = newest(tmp_path)
    tier = Bucket(URL, 2, None, QUICK)
    assert tier.promote(entry)
    assert not tier.promote(entry)
    assert s3.puts()[-1].endswith("/manifest.json")
    there = tier.entries()
    assert [(one.step, one.id) for one in there] == [(entry.step, entry.id)]
    (tmp_path / "back").mkdir()
    back = tier.fetch(there[0], str(tmp_path / "back"))
    assert verify(back.path) == verify(entry.path)
    for name in ("rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"):
        assert Path(back.path, name).read_bytes() == Path(entry.path, name).read_bytes()


def test_a_copy_that_was_cut_short_sends_only_the_rest(tmp_path: Path, s3: S3Server) -> None:
    entry = newest(tmp_path)
    copied(entry)
    name = Path(entry.path).name
    whole = s3.puts()
    # As a killed copy leaves it: no manifest, one part missing, one that is not what was written, one of another copy.
    missing, other = f"{name}/rank-00000.safetensors/000001", f"{name}/rank-00001.safetensors/000000"
    obstore.delete(raw(s3), [f"{name}/manifest.json", missing])
    obstore.put(raw(s3), other, bytes(keys(s3)[other]))
    obstore.put(raw(s3), "5-000000000001-000001-abcdef/rank-00000.safetensors/000000", b"overtaken")
    obstore.put(raw(s3), "not-ours.txt", b"stays")
    s3.asked.clear()
    tier = Bucket(URL, 2, None, QUICK)
    assert tier.entries() == []
    assert tier.promote(entry)
    sent = [path for path in s3.puts() if not path.endswith(OWNER)]
    assert len(whole) > len(sent) == 3
    tier.close()
    assert {key for key in keys(s3) if not key.startswith(name)} == {"not-ours.txt"}
    (tmp_path / "back").mkdir()
    verify(tier.fetch(tier.entries()[0], str(tmp_path / "back")).path)


@pytest.mark.parametrize("what", ["flip", "short", "missing", "manifest", "swapped"])
def test_damage_in_the_store_is_found(tmp_path: Path, s3: S3Server, what: str) -> None:
    entry = newest(tmp_path)
    tier = Bucket(URL, 2, None, QUICK)
    tier.promote(entry)
    name = Path(entry.path).name
    key = f"{name}/manifest.json" if what == "manifest" else f"{name}/rank-00001.safetensors/000000"
    data = bytearray(obstore.get(raw(s3), key).bytes().to_bytes())
    if what == "missing":
        obstore.delete(raw(s3), key)
    elif what == "short":
        obstore.put(raw(s3), key, bytes(data[:-7]))
    elif what == "swapped":
        obstore.put(raw(s3), key, obstore.get(raw(s3), f"{name}/rank-00000.safetensors/000000").bytes())
    else:
        data[len(data) // 2] ^= 4
        obstore.put(raw(s3), key, bytes(data))
    (tmp_path / "back").mkdir()
    with pytest.raises(Damaged, match=URL):
        tier.fetch(tier.entries()[0], str(tmp_path / "back"))
    assert list((tmp_path / "back").iterdir()) == []


def test_retention_counts_what_is_whole(tmp_path: Path, s3: S3Server) -> None:
    two_checkpoints(tmp_path / "c")
    first, second = folder.entries(str(tmp_path / "c"))
    copied(first, keep=1)
    copied(second, keep=1)
    assert [one.id for one in Bucket(URL, 1, None, QUICK).entries()] == [second.id]
    assert all(key.startswith(Path(second.path).name) for key in keys(s3))
    obstore.delete(raw(s3), f"{Path(second.path).name}/rank-00000.safetensors/000000")
    two_checkpoints(tmp_path / "d")
    third, fourth = folder.entries(str(tmp_path / "d"))
    copied(third)
    copied(fourth)  # the damaged one counts for nothing, and goes
    assert [one.id for one in Bucket(URL, 1, None, QUICK).entries()] == [third.id, fourth.id]


def test_a_limit_on_bandwidth_is_kept(tmp_path: Path, s3: S3Server) -> None:
    entry = newest(tmp_path)
    began = time.monotonic()
    Bucket(URL, 2, 50_000, QUICK).promote(entry)
    size = sum(path.stat().st_size for path in Path(entry.path).glob("*.safetensors"))
    assert time.monotonic() - began >= 0.9 * size / 50_000


def test_an_answer_of_503_or_none_is_asked_for_again(tmp_path: Path, s3: S3Server) -> None:
    entry = newest(tmp_path)
    tier = Bucket(URL, 2, None, QUICK)
    tier.take()
    s3.faults.extend([503, None, 503, 1.0, None, 500, None, 1.0])
    assert tier.promote(entry)
    assert not s3.faults
    (tmp_path / "back").mkdir()
    verify(tier.fetch(tier.entries()[0], str(tmp_path / "back")).path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (503, "s3://models/run/7: the store answered 503 .*asked 3 times"),
        (2.0, "s3://models/run/7: the store did not answer within 0.5 s .*asked 3 times"),
        (403, "s3://models/run/7: the store answered 403 Forbidden"),
    ],
)
def test_a_store_that_stays_bad_is_told_in_words(tmp_path: Path, s3: S3Server, fault: float, words: str) -> None:
    entry = newest(tmp_path)
    tier = Bucket(URL, 2, None, QUICK)
    tier.take()
    s3.always["PUT"] = fault
    s3.asked.clear()
    with pytest.raises(OSError, match=words):
        tier.promote(entry)
    assert len(s3.puts()) == (1 if fault == 403 else 3)
    assert tier.entries() == []
    s3.always = {"GET": fault}
    with pytest.raises(OSError, match=words):
        tier.entries()
    s3.always.clear()
    assert tier.promote(entry)


def test_a_training_whose_disk_is_lost_goes_on_from_the_store(
    tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(tiers=(URL,), tier_keep=2)
    training = Training()
    ckpt = training.checkpointer(tmp_path / "c", options, every=5)
    training.run(ckpt, ckpt.load(), 20)
    ckpt.close()
    state = training.state()
    last = folder.entries(str(tmp_path / "c"))[-1]
    shard = Path(last.path, "rank-00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    for lose in (False, True):  # a damaged copy here is replaced by the store's; and so is a lost folder
        if lose:
            shutil.rmtree(tmp_path / "c")
        other = Training(seed=1)
        ckpt = other.checkpointer(tmp_path / "c", options)
        assert ckpt.load() == 20
        ckpt.close()
        assert all(torch.equal(value, state[name]) for name, value in other.state().items())
        verify(folder.entries(str(tmp_path / "c"))[-1].path)
    assert "step 19 is damaged" in capsys.readouterr().err


def test_a_store_that_is_down_stops_no_training_and_starts_none_afresh(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("penstock.worker.checkpoint.bucket.Bucket.__init__.__defaults__", (QUICK, None))
    training = Training()
    ckpt = training.checkpointer(tmp_path / "c", Options(tiers=(URL,)), every=5)
    s3.always["PUT"] = 503
    training.run(ckpt, ckpt.load(), 5)
    ckpt.close()
    assert "was not copied to s3://models/run/7: s3://models/run/7: the store answered 503" in capsys.readouterr().err
    s3.always["GET"] = 503
    ckpt = Training().checkpointer(tmp_path / "c", Options(tiers=(URL,)))
    assert ckpt.load() == 5
    assert "not asked for its checkpoints: s3" in capsys.readouterr().err
    ckpt.close()
    ckpt = Training().checkpointer(tmp_path / "fresh", Options(tiers=(URL,)))
    with pytest.raises(CheckpointError, match="a tier does not say whether it has one"):
        ckpt.load()
    ckpt.close()
