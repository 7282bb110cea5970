"""What is in a folder of shards: which clips of a split, in which row groups.

Path:    shards -> ClipIndex -> the chains of data/pipeline.py
Letters: none
Units:   none
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finephys.data import storage
from finephys.data.clips import CLIP_SCHEMA, check_schema


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Clips of one row group of a shard, in the order in which they are wanted."""

    shard: str
    number: int
    clip_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClipIndex:
    """The clips of one split: the row groups that hold them, in the order in which they are read."""

    groups: tuple[RowGroup, ...]
    split: str

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards that hold clips of these."""
        return tuple(dict.fromkeys(group.shard for group in self.groups))

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """The ids of all clips, sorted."""
        return tuple(sorted(clip_id for group in self.groups for clip_id in group.clip_ids))

    def evenly(self, num_clips: int) -> "ClipIndex":
        """At most `num_clips` of these, spread evenly over the ids."""
        clip_ids = self.clip_ids
        if num_clips >= len(clip_ids):
            return self
        positions = np.linspace(0, len(clip_ids) - 1, num_clips).round().astype(int)
        picked = {clip_ids[position] for position in positions}
        groups = [
            replace(group, clip_ids=tuple(clip_id for clip_id in group.clip_ids if clip_id in picked))
            for group in self.groups
        ]
        return replace(self, groups=tuple(group for group in groups if group.clip_ids))


def index_clips(url: str, split: str) -> ClipIndex:
    """Look through the shards at `url` for clips of `split`: reads two narrow columns, starts nothing.

    Raises FileNotFoundError without a folder or shards; ValueError, naming the shard, on one that is no readable
    Parquet file or of an unknown schema, on a clip_id that occurs twice, and where the split is empty.
    """
    groups, splits_seen = [], set()
    for shard in storage.list_shards(url):
        filesystem, path = storage.open_filesystem(shard)
        try:
            with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
                check_schema(file.schema_arrow, shard)
                table = file.read(columns=["clip_id", "split"])
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        except pa.ArrowException as error:
            raise ValueError(f"shard {shard} cannot be read: {str(error).splitlines()[0]}") from error
        splits_seen |= set(table["split"].to_pylist())
        start = 0
        for number, size in enumerate(sizes):
            rows = table.slice(start, size)
            found = rows.filter(pc.equal(rows["split"], split))["clip_id"].to_pylist()
            if found:
                groups.append(RowGroup(shard=shard, number=number, clip_ids=tuple(found)))
            start += size
    if not groups:
        raise ValueError(
            f"data {url} has no clip in split {split!r}, it has {', '.join(sorted(splits_seen)) or 'none'}"
        )
    index = ClipIndex(groups=tuple(groups), split=split)
    for one, next_one in pairwise(index.clip_ids):
        if one == next_one:
            raise ValueError(f"data {url} has clip_id {one} twice in split {split!r}")
    return index


def read_group(group: RowGroup) -> pa.Table:
    """The clip records of a row group, as CLIP_SCHEMA has them."""
    filesystem, path = storage.open_filesystem(group.shard)
    with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
        clips = file.read_row_group(group.number, columns=CLIP_SCHEMA.names)
    return clips.take(pc.index_in(pa.array(group.clip_ids), value_set=clips["clip_id"].combine_chunks()))
