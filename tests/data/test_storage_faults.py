"""A server that fails now and then is not a failure: reads and writes are whole in the end."""

from collections.abc import Iterator

import numpy as np
import pytest

from finephys.data import storage
from finephys.data.clips import write_shard
from finephys.data.index import index_clips, read_group
from tests.data.faulty_proxy import FaultyProxy, faulty_s3
from tests.training.made_clips import make_clip


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with faulty_s3("faulty") as proxy:
        yield proxy


@pytest.mark.parametrize("faults", [["500"], ["500", "500"], ["refuse"], ["cut"], ["cut", "500"]])
def test_reads_are_retried(proxy: FaultyProxy, faults: list[str]) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    storage.write_bytes("s3://faulty/deep/data.bin", data)
    proxy.seen.clear()
    proxy.faults = list(faults)
    assert storage.read_bytes("s3://faulty/deep/data.bin") == data
    assert sum(count for fault, count in proxy.seen.items() if fault != "none") == len(faults)


@pytest.mark.parametrize("faults", [["delete"], ["none", "delete"]])
def test_what_is_deleted_while_it_is_read_is_not_there(proxy: FaultyProxy, faults: list[str]) -> None:
    """The second case: between Arrow's look whether it is there and its read."""
    storage.write_bytes("s3://faulty/gone/data.bin", b"x" * 1000)
    proxy.faults = list(faults)
    with pytest.raises(FileNotFoundError, match=r"gone/data\.bin"):
        storage.read_bytes("s3://faulty/gone/data.bin")
    assert not proxy.faults


@pytest.mark.parametrize("faults", [["500"], ["refuse", "500"]])
def test_writes_are_retried(proxy: FaultyProxy, faults: list[str]) -> None:
    data = np.random.default_rng(1).bytes(300_000)
    url = f"s3://faulty/written/{'-'.join(faults)}"
    proxy.faults = list(faults)
    storage.write_bytes(url, data)
    assert not proxy.faults
    assert storage.read_bytes(url) == data


def test_shards_are_indexed_and_read_through_faults(proxy: FaultyProxy, tmp_path) -> None:
    clips = [make_clip(number, "train") for number in range(4)]
    write_shard(clips, tmp_path / "a.parquet")
    storage.write_bytes("s3://faulty/shards/train-00000.parquet", (tmp_path / "a.parquet").read_bytes())
    proxy.faults = ["500", "none", "refuse", "none", "500"]
    index = index_clips("s3://faulty/shards", "train")
    assert index.clip_ids == tuple(clip.clip_id for clip in clips)
    assert not proxy.faults
    # The videos too, as a task of the chain reads them.
    proxy.seen.clear()
    proxy.faults = ["500", "none", "cut", "500"]
    (group,) = index.groups
    records = read_group(group)
    assert not proxy.faults
    assert proxy.seen["500"] == 2
    assert records["video"].to_pylist() == [clip.video for clip in clips]


def test_a_server_that_never_recovers_is_an_error(proxy: FaultyProxy) -> None:
    proxy.faults = ["500"] * 100
    with pytest.raises(OSError, match=r"deep/data\.bin|500|INTERNAL"):
        storage.read_bytes("s3://faulty/deep/data.bin")
    proxy.faults = []
