"""The loader: the conformance of loaders, positions in checkpoints, and what is wrong with whatever it is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.worker.checkpoint.public import Checkpointer
from penstock.worker.data.index import INDEX
from penstock.worker.data.public import DataDamaged, DataError, Options, OtherData, TokenLoader
from tests.worker.data.conformance import Life, lineage, missed_and_doubled
from tests.worker.data.conftest import BLOCK, make_data

BATCH = 12


class Ours:
    def __init__(self, folder: str, rank: int = 0, world_size: int = 1, **options: Any) -> None:
        self.loader = TokenLoader(
            folder, block_size=BLOCK, batch=BATCH, seed=5, ranks=(rank, world_size), options=Options(**options)
        )
        self.state_dict = self.loader.state_dict
        self.load_state_dict = self.loader.load_state_dict
        self.load_resharded = self.loader.load_resharded
        self.close = self.loader.close

    def batch(self) -> list[int]:
        tokens = next(self.loader)
        assert tokens.shape == (self.loader.rows, BLOCK)
        assert tokens.dtype == torch.int64
        assert tokens.eq(torch.from_numpy(self.loader.ids)[:, None]).all()
        return [int(sample) for sample in self.loader.ids]


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    found = []
    for _ in range(draw(st.integers(1, 5))):
        steps = draw(st.integers(1, 6))
        found.append(Life(draw(st.integers(1, 4)), steps, draw(st.integers(0, steps))))
    return [*found, Life(1, 14, 14)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=lives(), uninterrupted=st.just([Life(1, 14, 14)]))
def test_kills_and_other_numbers_of_ranks_change_nothing(
    data: str, lives: list[Life], uninterrupted: list[Life]
) -> None:
    steps = lineage(lambda rank, ranks: Ours(data, rank, ranks), lives)
    assert missed_and_doubled(steps, 50) == (0, 0)
    whole = lineage(lambda rank, ranks: Ours(data, rank, ranks), uninterrupted)
    assert steps[:14] == whole


def test_workers_read_the_same_in_the_same_order(data: str) -> None:
    run = [Life(2, 3, 2), Life(1, 3, 2)]
    threaded = lineage(lambda rank, ranks: Ours(data, rank, ranks), run)
    assert lineage(lambda rank, ranks: Ours(data, rank, ranks, workers=2, ahead=4), run) == threaded


def test_what_fills_no_batch_is_carried_over_or_dropped(data: str) -> None:
    carried, dropped = Ours(data), Ours(data, last="drop")
    assert (carried.loader.steps(), carried.loader.steps(2), dropped.loader.steps(2)) == (4, 8, 8)
    steps = [carried.batch() for _ in range(5)]
    assert carried.loader.epoch == 1
    assert sorted(sample for step in steps for sample in step)[:50] != sorted(range(50))
    assert len({*(sample for step in steps for sample in step)}) == 50
    for _ in range(2):
        assert dropped.loader.state_dict()["sample"] in {0, 48}
        epoch = [sample for _ in range(4) for sample in dropped.batch()]
        assert len(set(epoch)) == 48
    carried.close()
    dropped.close()


def test_uneven_slices_by_choice(data: str) -> None:
    with pytest.raises(DataError, match="12 cannot be divided evenly among 5 ranks"):
        Ours(data, 0, 5)
    with pytest.raises(DataError, match="without a sample"):
        Ours(data, 0, 13, uneven="spread")
    ranks = [Ours(data, rank, 5, uneven="spread") for rank in range(5)]
    alone = Ours(data)
    assert [sample for one in ranks for sample in one.batch()] == alone.batch()
    assert sum(one.loader.weight for one in ranks) == pytest.approx(5)
    for one in [*ranks, alone]:
        one.close()


def test_in_a_checkpoint(data: str, tmp_path: Path) -> None:
    whole = lineage(lambda rank, ranks: Ours(data, rank, ranks), [Life(1, 12, 12)])
    model = torch.nn.Linear(2, 2)
    found: list[list[int]] = []
    for stop in (7, 12):
        ours = Ours(data)
        ckpt = Checkpointer(str(tmp_path / "c"), model=model, loader=ours.loader, every=5)
        start = ckpt.load()
        del found[start:]
        for step in range(start, stop):
            found.append(ours.batch())
            ckpt.step(step)
        ckpt.close()
        ours.close()
    assert start == 5
    assert found == whole


def test_a_start_in_the_middle_reads_none_of_what_was_passed(tmp_path: Path) -> None:
    data = make_data(tmp_path, samples=400)
    first = Ours(data, window=1)
    for _ in range(20):
        first.batch()
    later = Ours(data, window=1)
    later.load_state_dict(first.state_dict())
    assert later.batch() == first.batch()
    first.close()
    later.close()
    read = later.loader._reader._seen
    assert len(read) <= 36 // 7 + 3  # the batch that was asked for and two ahead, of 58 chunks


def other(data: str, **changes: Any) -> TokenLoader:
    given = {"block_size": BLOCK, "batch": BATCH, "seed": 5}
    return TokenLoader(data, **(given | changes))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"block_size": 4}, "block size was 8, and is 4"),
        ({"seed": 6}, "seed was 5, and is 6"),
        ({"shuffle": False}, "shuffle was True, and is False"),
        ({"options": Options(window=2)}, "window was 4, and is 2"),
    ],
)
def test_a_position_in_another_order_is_refused(data: str, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(OtherData, match=what):
        other(data, **changes).load_state_dict(other(data).state_dict())


def test_a_position_in_other_data_is_refused(data: str, tmp_path: Path) -> None:
    state = other(data).state_dict()
    with pytest.raises(OtherData, match="tokens was 400, and is 408"):
        other(make_data(tmp_path / "longer", samples=51)).load_state_dict(state)
    with pytest.raises(OtherData, match=r"chunk 0 \(chunk-0-0.bin\) is another"):
        other(make_data(tmp_path / "same-size", first=100)).load_state_dict(state)
    with pytest.raises(OtherData, match="not one of TokenLoader"):
        other(data).load_state_dict({"num_samples_yielded": 12})
    with pytest.raises(OtherData, match="rank 1 was at another place"):
        other(data).load_resharded([state, state | {"sample": 12}], 0, 1)
    shutil.copytree(data, tmp_path / "moved")
    other(str(tmp_path / "moved")).load_state_dict(state)


def test_another_batch_goes_on_where_the_first_one_was(data: str) -> None:
    first = other(data)
    ids = [*next(first), *next(first)] and first.ids
    second = other(data, batch=26)
    second.load_state_dict(first.state_dict())
    next(second)
    assert not set(ids) & set(second.ids)
    assert second.epoch == 1
    first.close()
    second.close()


def test_a_chunk_that_is_missing_or_short_is_named(data: str) -> None:
    Path(data, "chunk-0-3.bin").unlink()
    with pytest.raises(DataDamaged, match=r"chunk-0-3\.bin: No such file"):
        other(data)
    Path(data, "chunk-0-3.bin").write_bytes(b"1234")
    with pytest.raises(DataDamaged, match=r"chunk-0-3\.bin: it has 4 bytes, and was written with 124"):
        other(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_chunk_that_goes_missing_later_is_named(data: str, workers: int) -> None:
    loader = other(data, options=Options(workers=workers, ahead=1))
    for chunk in Path(data).glob("chunk-0-*.bin"):
        chunk.unlink()
    with pytest.raises(DataDamaged, match=r"chunk-0-\d.bin: No such file"):
        next(loader)
    loader.close()


def test_what_is_no_data_set_is_said(data: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no data set: it has no index\.json"):
        other(str(tmp_path))
    with pytest.raises(DataError, match="50 samples of 8 tokens, too few for a batch of 51"):
        other(data, batch=51, options=Options(last="drop"))
    with pytest.raises(DataError, match="0 samples of 1000 tokens"):
        other(data, block_size=1000)
    with pytest.raises(DataError, match="at least 1"):
        other(data, batch=0)
    index = Path(data, INDEX)
    body = json.loads(index.read_text())
    for chunks, what in (([], "empty data set"), ([{**body["chunks"][0], "dim": None}], "holds no tokens")):
        index.write_text(json.dumps({**body, "chunks": chunks}))
        with pytest.raises(DataError, match=what):
            other(data)
    index.write_text("{")
    with pytest.raises(DataDamaged, match=r"index\.json"):
        other(data)


def test_a_data_set_that_litdata_wrote(tmp_path: Path) -> None:
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    (tmp_path / "out").mkdir()
    writer = BinaryWriter(str(tmp_path / "out"), chunk_bytes=64, item_loader=TokensLoader())
    for number in range(20):
        writer.add_item(number, np.full(BLOCK, number, dtype=np.int32))
    writer.done()
    writer.merge(1)
    ours = Ours(str(tmp_path / "out"))
    steps = [ours.batch() for _ in range(5)]
    assert missed_and_doubled(steps, 20) == (0, 0)
    ours.close()


def test_chunks_that_litdata_brings_into_its_cache(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litdata.utilities.dataset_utilities.get_default_cache_dir", lambda: str(tmp_path / "cache"))
    run = [Life(2, 3, 2), Life(1, 4, 4)]
    here = lineage(lambda rank, ranks: Ours(data, rank, ranks), run)
    assert lineage(lambda rank, ranks: Ours(f"local:{data}", rank, ranks), run) == here
    assert list((tmp_path / "cache").rglob("chunk-0-*.bin"))
    with pytest.raises(DataError, match="cannot be opened"):
        Ours(f"local:{tmp_path}")
