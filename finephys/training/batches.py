"""The order in which a rank sees the rows, and their batches, made ahead of the step that needs them.

Path:    rows -> Batch
Letters: none
Units:   samples

Held rows (RowsConfig.materialise): samples are the concatenation of one permutation of the clips an epoch, drawn from
(seed, epoch). Step s of R ranks takes the next global batch of it, so the order depends on neither the number of ranks
nor on interruptions, and no clip comes twice before every clip came once.
Streamed rows: an epoch is a permutation of the row groups, drawn from (seed, epoch), and of the clips in each. Rank r
of R reads the groups r, r + R, ... of the endless sequence of epochs, so it depends on nobody's speed. Where a rank has
got to is a few numbers, which the checkpoint keeps: a run that was interrupted reads on from the very clip, on another
number of ranks too, and every clip comes once an epoch.
Windows: sample i of the run is window i, whatever the number of ranks.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from torch.utils.data import DataLoader, Dataset

from finephys.config import TrainConfig
from finephys.training.stages import Batch, Row

Collate = Callable[[list[Row], np.random.Generator], Batch]

# Batches collated ahead: one being used, one waiting.
PREFETCHED_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """A batch and the clips that it was made of.  position: of a stream of clips, where the next batch begins.

    num_frames: video frames or poses that are learnt from, over all its samples.
    """

    clip_ids: list[str]
    tensors: Batch
    position: "StreamPosition | None" = None

    @property
    def num_frames(self) -> int:
        """As the letters of the tensors' names say (B samples of F or T frames, N frames); else one a sample."""
        for axes, num_axes in (("BF", 2), ("BT", 2), ("N", 1)):
            for name, tensor in self.tensors.items():
                if name.rpartition("_")[2].startswith(axes):
                    return tensor.shape[:num_axes].numel()
        return len(self.clip_ids)


@dataclass(frozen=True, kw_only=True)
class StreamPosition:
    """What of the sequence of row groups a rank has not read yet: `left`, then next, next + stride, ... for ever.

    left: pairs (group of the sequence, clips of it that were read).
    """

    left: tuple[tuple[int, int], ...] = ()
    next: int
    stride: int

    def groups(self) -> Iterator[tuple[int, int]]:
        """The pairs of `left`, then those of the rest."""
        yield from self.left
        for group in _count_from(self.next, self.stride):
            yield group, 0

    def after(self, num_groups: int, num_read: int) -> "StreamPosition":
        """Where a rank is that read num_groups whole groups from here, and num_read clips in all of the next one."""
        num_implicit = max(0, num_groups - len(self.left))
        left, following = self.left[num_groups:], self.next + num_implicit * self.stride
        if num_read > 0:
            group = left[0][0] if left else following
            following += 0 if left else self.stride
            left = ((group, num_read), *left[1:])
        return StreamPosition(left=left, next=following, stride=self.stride)


def start_positions(num_ranks: int) -> list[StreamPosition]:
    """Where the ranks of a run begin."""
    return [StreamPosition(next=rank, stride=num_ranks) for rank in range(num_ranks)]


def shared_anew(positions: Sequence[StreamPosition], num_ranks: int) -> list[StreamPosition]:
    """The same unread clips for another number of ranks."""
    if len(positions) == num_ranks:
        return list(positions)
    # From `beyond` on nobody has read anything; before it lies what each rank has left.
    beyond = max(position.next for position in positions)
    left = [pair for position in positions for pair in position.left]
    for position in positions:
        left += [(group, 0) for group in range(position.next, beyond, position.stride)]
    left.sort()
    return [
        StreamPosition(left=tuple(left[rank::num_ranks]), next=beyond + rank, stride=num_ranks)
        for rank in range(num_ranks)
    ]


def held_batches(
    rows: Sequence[Row], collate: Collate, config: TrainConfig, rank: int, first_step: int
) -> Iterator[LabelledBatch]:
    """Micro-batches of this rank from optimizer step `first_step` on to the last, from rows that it holds.

    Made ahead of the step that needs them, by config.collate_processes of their own or else by a thread.
    """
    held = _HeldBatches(rows, collate, config, rank)
    places = range(first_step * config.accumulation, config.steps * config.accumulation)
    if config.collate_processes == 0:
        return prefetched(held[place] for place in places)
    # Forked: the processes read the rows where they lie.
    return iter(
        DataLoader(
            held,
            batch_size=None,
            sampler=places,
            num_workers=config.collate_processes,
            prefetch_factor=PREFETCHED_BATCHES,
            multiprocessing_context="fork",
        )
    )


class _HeldBatches(Dataset[LabelledBatch]):
    """The micro-batches of a rank by their place in the run: step * accumulation + micro."""

    def __init__(self, rows: Sequence[Row], collate: Collate, config: TrainConfig, rank: int) -> None:
        self.rows, self.collate, self.config, self.rank = rows, collate, config, rank
        self.order = _Order(len(rows), config.seed)

    def __getitem__(self, place: int) -> LabelledBatch:
        config = self.config
        step, micro = divmod(place, config.accumulation)
        first = (place * config.num_workers + self.rank) * config.batch_size
        picked = [self.rows[self.order.row(first + sample)] for sample in range(config.batch_size)]
        return _collated(picked, self.collate, config, self.rank, step, micro)


def streamed_batches(
    stream: Iterator[tuple[Row, StreamPosition | None]],
    collate: Collate,
    config: TrainConfig,
    rank: int,
    first_step: int,
) -> Iterator[LabelledBatch]:
    """Micro-batches of this rank from `first_step` on, until its stream ends, made ahead by a thread.

    stream: this rank's rows from there on, each with the position after it.
    """

    def batches() -> Iterator[LabelledBatch]:
        for step in _count_from(first_step):
            for micro in range(config.accumulation):
                picked = list(islice(stream, config.batch_size))
                if len(picked) < config.batch_size:
                    return
                rows = [row for row, _ in picked]
                yield replace(_collated(rows, collate, config, rank, step, micro), position=picked[-1][1])

    return prefetched(batches())


def window_index(position: int, config: TrainConfig, rank: int, first_step: int) -> int:
    """Which window the position-th row is that `rank` reads from step `first_step` on."""
    micro_batch, sample = divmod(position, config.batch_size)
    share = (first_step * config.accumulation + micro_batch) * config.num_workers + rank
    return share * config.batch_size + sample


def prefetched(batches: Iterator[LabelledBatch]) -> Iterator[LabelledBatch]:
    """The same batches, made from now on in a thread of their own, while the step computes."""
    ready: queue.Queue[LabelledBatch | BaseException | None] = queue.Queue(PREFETCHED_BATCHES)
    is_closed = threading.Event()

    def fill() -> None:
        try:
            for batch in batches:
                put(batch)
                if is_closed.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    def put(batch: LabelledBatch | BaseException | None) -> None:
        while not is_closed.is_set():
            try:
                return ready.put(batch, timeout=0.2)
            except queue.Full:
                continue

    def read() -> Iterator[LabelledBatch]:
        try:
            while True:
                batch = ready.get()
                if batch is None:
                    return
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            is_closed.set()

    threading.Thread(target=fill, name="collate", daemon=True).start()
    return read()


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


def _count_from(start: int, stride: int = 1) -> Iterator[int]:
    while True:
        yield start
        start += stride
