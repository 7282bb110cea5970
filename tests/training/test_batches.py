"""The order of the samples: no clip twice before every clip once, whatever the ranks and the interruptions."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from finephys.training.batches import held_batches, prefetched, streamed_batches, validation_batches
from tests.training.tiny_stage import tiny_config

ROWS = [{"clip_id": f"clip-{index:02d}", "value": index} for index in range(10)]
CONFIG = tiny_config("none", "none", 100)


def collate(rows, rng):
    return {"value": torch.tensor([row["value"] for row in rows]), "noise": torch.from_numpy(rng.random(2))}


def _ids(batches, count):
    return [clip_id for batch in islice(batches, count) for clip_id in batch.clip_ids]


def test_each_epoch_holds_every_clip_once() -> None:
    seen = _ids(held_batches(ROWS, collate, CONFIG, 0, 0), 25)
    assert len(seen) == 100
    for epoch in range(10):
        assert set(Counter(seen[epoch * 10 : epoch * 10 + 10]).values()) == {1}
    assert seen[:10] != seen[10:20]


def test_two_ranks_share_the_batches_of_one() -> None:
    alone = _ids(held_batches(ROWS, collate, CONFIG, 0, 0), 6)
    shared = replace(CONFIG, num_workers=2, batch_size=2)
    ranks = [held_batches(ROWS, collate, shared, rank, 0) for rank in range(2)]
    together = [clip_id for _ in range(6) for rank in ranks for clip_id in next(rank).clip_ids]
    assert together == alone


def test_accumulated_micro_batches_make_the_same_global_batch() -> None:
    alone = _ids(held_batches(ROWS, collate, CONFIG, 0, 0), 6)
    accumulated = replace(CONFIG, accumulation=2, batch_size=2)
    assert _ids(held_batches(ROWS, collate, accumulated, 0, 0), 12) == alone


def test_a_later_start_continues_the_sequence() -> None:
    whole = list(islice(held_batches(ROWS, collate, CONFIG, 0, 0), 8))
    rest = list(islice(held_batches(ROWS, collate, CONFIG, 0, 5), 3))
    for ours, theirs in zip(rest, whole[5:], strict=True):
        assert ours.clip_ids == theirs.clip_ids
        assert torch.equal(ours.tensors["noise"], theirs.tensors["noise"])


def test_a_stream_goes_on_after_the_rows_it_had_seen() -> None:
    def epochs(epoch):
        return iter(ROWS)

    whole = list(islice(streamed_batches(epochs, collate, CONFIG, 0, 0, 0), 8))
    rest = list(islice(streamed_batches(epochs, collate, CONFIG, 0, 5, 20), 3))
    for ours, theirs in zip(rest, whole[5:], strict=True):
        assert ours.clip_ids == theirs.clip_ids
        assert torch.equal(ours.tensors["noise"], theirs.tensors["noise"])


def test_an_empty_stream_is_an_error_and_no_hang() -> None:
    with pytest.raises(ValueError, match="stream of rows is empty"):
        next(streamed_batches(lambda epoch: iter([]), collate, CONFIG, 0, 0, 0))


def test_prefetching_changes_nothing_and_passes_errors_on() -> None:
    plain = _ids(held_batches(ROWS, collate, CONFIG, 0, 0), 5)
    assert _ids(prefetched(held_batches(ROWS, collate, CONFIG, 0, 0)), 5) == plain

    def failing(rows, rng):
        raise ValueError("clip clip-03 is too short")

    with pytest.raises(ValueError, match="clip-03"):
        next(prefetched(held_batches(ROWS, failing, CONFIG, 0, 0)))


def test_validation_batches_are_always_the_same() -> None:
    config = replace(CONFIG, validation_batches=3)
    one, two = (validation_batches(ROWS, collate, config) for _ in range(2))
    assert [batch.clip_ids for batch in one] == [[row["clip_id"] for row in ROWS[i : i + 4]] for i in (0, 4, 8)]
    for first, second in zip(one, two, strict=True):
        assert np.array_equal(first.tensors["noise"], second.tensors["noise"])
