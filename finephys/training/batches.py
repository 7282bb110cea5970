"""The order in which a rank sees the rows, and their batches, made ahead of the step that needs them.

Path:    rows -> Batch
Letters: none
Units:   samples

Held rows (RowsConfig.materialise): samples are the concatenation of one permutation of the clips an epoch, drawn from
(seed, epoch). Step s of R ranks takes the next global batch of it, so the order depends on neither the number of ranks
nor on interruptions, and no clip comes twice before every clip came once.
Streamed rows: each rank reads its share of the stream in the stream's order and skips what it had seen before an
interruption. One rank sees the same order in every run; how Ray Data shares the stream among several is its choice.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from finephys.config import TrainConfig
from finephys.training.stages import Batch, Row

Collate = Callable[[list[Row], np.random.Generator], Batch]

# Batches collated ahead: one being used, one waiting.
PREFETCHED_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """A batch and the clips that it was made of."""

    clip_ids: list[str]
    tensors: Batch


def held_batches(
    rows: Sequence[Row], collate: Collate, config: TrainConfig, rank: int, first_step: int
) -> Iterator[LabelledBatch]:
    """Micro-batches of this rank from optimizer step `first_step` on, without end, from rows that it holds."""
    order = _Order(len(rows), config.seed)
    for step in _count_from(first_step):
        for micro in range(config.accumulation):
            share = (step * config.accumulation + micro) * config.num_workers + rank
            picked = [rows[order.row(share * config.batch_size + sample)] for sample in range(config.batch_size)]
            yield _collated(picked, collate, config, rank, step, micro)


def streamed_batches(
    epochs: Callable[[int], Iterator[Row]],
    collate: Collate,
    config: TrainConfig,
    rank: int,
    first_step: int,
    num_skipped: int,
) -> Iterator[LabelledBatch]:
    """Micro-batches of this rank from `first_step` on, without end.

    epochs(e): this rank's rows of epoch e, from 0.  num_skipped: rows at the head of the stream that were seen before.
    """
    stream = islice(_chained(epochs), num_skipped, None)
    for step in _count_from(first_step):
        for micro in range(config.accumulation):
            picked = list(islice(stream, config.batch_size))
            yield _collated(picked, collate, config, rank, step, micro)


def prefetched(batches: Iterator[LabelledBatch]) -> Iterator[LabelledBatch]:
    """The same batches, made in a thread of their own while the step computes."""
    ready: queue.Queue[LabelledBatch | BaseException] = queue.Queue(PREFETCHED_BATCHES)
    is_closed = threading.Event()

    def fill() -> None:
        try:
            for batch in batches:
                while not is_closed.is_set():
                    try:
                        ready.put(batch, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if is_closed.is_set():
                    return
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=fill, name="collate", daemon=True).start()
    try:
        while True:
            batch = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        is_closed.set()


def validation_batches(rows: Sequence[Row], collate: Collate, config: TrainConfig) -> list[LabelledBatch]:
    """The fixed batches that every validation of this run uses: the same rows, the same windows."""
    batches = []
    for index in range(min(config.validation_batches, -(-len(rows) // config.batch_size))):
        picked = list(rows[index * config.batch_size : (index + 1) * config.batch_size])
        rng = np.random.default_rng((config.seed, index))
        batches.append(LabelledBatch(clip_ids=_clip_ids(picked), tensors=collate(picked, rng)))
    return batches


class _Order:
    """Which row the n-th sample of a run is."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.permutations: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}

    def row(self, sample: int) -> int:
        epoch, position = divmod(sample, self.num_rows)
        if epoch not in self.permutations:
            # A batch spans few epochs; the earlier ones never come back.
            self.permutations = {kept: self.permutations[kept] for kept in self.permutations if kept >= epoch - 8}
            self.permutations[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.num_rows)
        return int(self.permutations[epoch][position])


def _collated(
    rows: list[Row], collate: Collate, config: TrainConfig, rank: int, step: int, micro: int
) -> LabelledBatch:
    rng = np.random.default_rng((config.seed, step, micro, rank))
    return LabelledBatch(clip_ids=_clip_ids(rows), tensors=collate(rows, rng))


def _clip_ids(rows: Sequence[Row]) -> list[str]:
    return [str(row.get("clip_id", row.get("index", "?"))) for row in rows]


def _chained(epochs: Callable[[int], Iterator[Row]]) -> Iterator[Row]:
    for epoch in _count_from(0):
        num_rows = 0
        for row in epochs(epoch):
            num_rows += 1
            yield row
        if num_rows == 0:
            raise ValueError("the stream of rows is empty: every clip of this rank failed or there are too few")


def _count_from(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1
