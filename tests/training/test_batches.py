"""The order of the samples: no clip twice before every clip once, whatever the ranks and the interruptions."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from finephys.training.batches import (
    StreamPosition,
    held_batches,
    shared_anew,
    start_positions,
    streamed_batches,
    validation_batches,
    window_index,
)
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


def test_two_ranks_read_the_windows_of_one() -> None:
    whole = [window_index(position, CONFIG, 0, 0) for position in range(40)]
    assert whole == list(range(40))
    shared = replace(CONFIG, num_workers=2, batch_size=1, accumulation=2)
    # From step 3 on: the 4 windows of a step, micro-batch by micro-batch, rank by rank.
    together = [window_index(micro, shared, rank, 3) for micro in range(4) for rank in range(2)]
    assert together == list(range(12, 20))


SIZES = (3, 1, 4)


def _read(position: StreamPosition, num_clips: int) -> tuple[list[tuple[int, int]], StreamPosition]:
    """The next clips from a position as (group of the sequence, clip), and where that leads; groups repeat SIZES."""
    clips = []
    for num_groups, (group, num_read) in enumerate(position.groups()):
        for clip in range(num_read, SIZES[group % 3]):
            clips.append((group, clip))
            if len(clips) == num_clips:
                is_last = clip + 1 == SIZES[group % 3]
                return clips, position.after(num_groups + is_last, 0 if is_last else clip + 1)
    raise AssertionError("a stream ended")


def test_a_stream_reads_on_where_it_was() -> None:
    for rank, start in enumerate(start_positions(2)):
        whole, end = _read(start, 30)
        assert {group % 2 for group, _ in whole} == {rank}
        position, parts = start, []
        for num_clips in (1, 2, 5, 1, 10, 11):
            part, position = _read(position, num_clips)
            parts += part
        assert parts == whole
        assert position == end


def test_other_ranks_read_the_rest_each_clip_once() -> None:
    clips, positions = [], start_positions(3)
    # 3 ranks, then 2, then 4, whose ranks never read the same number of clips.
    for num_ranks, speeds in ((3, (5, 9, 2)), (2, (7, 11)), (4, (8, 3, 12, 20)), (1, (150,))):
        positions = shared_anew(positions, num_ranks)
        assert len(positions) == num_ranks
        for rank, num_clips in enumerate(speeds):
            part, positions[rank] = _read(positions[rank], num_clips)
            clips += part
    assert len(set(clips)) == len(clips)
    # The last rank alone read on without a gap: all before its group is read.
    last = max(clips)[0]
    assert {clip for clip in clips if clip[0] < last} == {
        (group, clip) for group in range(last) for clip in range(SIZES[group % 3])
    }


def test_the_same_number_of_ranks_goes_on_as_before() -> None:
    positions = start_positions(2)
    for rank, num_clips in enumerate((4, 9)):
        _, positions[rank] = _read(positions[rank], num_clips)
    assert shared_anew(positions, 2) == positions


def test_a_stream_that_ends_ends_the_batches() -> None:
    rows = iter([({"clip_id": str(index), "value": index}, None) for index in range(6)])
    batches = list(streamed_batches(rows, collate, CONFIG, 0, 0))
    assert [batch.clip_ids for batch in batches] == [["0", "1", "2", "3"]]


@pytest.mark.parametrize("num_processes", [0, 2])
def test_what_is_collated_ahead_ends_with_the_run_and_passes_errors_on(num_processes: int) -> None:
    config = replace(CONFIG, steps=7, accumulation=2, collate_processes=num_processes)
    ahead = list(held_batches(ROWS, collate, config, 0, 2))
    assert len(ahead) == 10
    plain = list(islice(held_batches(ROWS, collate, replace(config, steps=100, collate_processes=0), 0, 2), 10))
    for ours, theirs in zip(ahead, plain, strict=True):
        assert ours.clip_ids == theirs.clip_ids
        assert torch.equal(ours.tensors["noise"], theirs.tensors["noise"])

    def failing(rows, rng):
        raise ValueError("clip clip-03 is too short")

    with pytest.raises(ValueError, match="clip-03"):
        next(held_batches(ROWS, failing, config, 0, 0))


def test_validation_batches_are_always_the_same() -> None:
    config = replace(CONFIG, validation_batches=3)
    one, two = (validation_batches(ROWS, collate, config) for _ in range(2))
    assert [batch.clip_ids for batch in one] == [[row["clip_id"] for row in ROWS[i : i + 4]] for i in (0, 4, 8)]
    for first, second in zip(one, two, strict=True):
        assert np.array_equal(first.tensors["noise"], second.tensors["noise"])
