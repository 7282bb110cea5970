"""The driving clips: whose motion is generated, and with which prompt.

Path:    shards or a user's video -> Clip and prompt
Units:   as finephys/data/clips.py

Nothing here needs torch, so that a wrong argument is answered at once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from finephys.data.clips import Clip, read_shard
from finephys.data.storage import list_shards, local_path
from finephys.data.video import decode_video


def read_clips(data: str) -> Iterator[Clip]:
    """The clips of all shards in the local folder (or shard) `data`, in the order of the shards' names.

    Raises FileNotFoundError where there is no shard, ValueError on a shard of an unknown schema or a URL elsewhere.
    """
    for shard in list_shards(data):
        try:
            yield from read_shard(local_path(shard))
        except pa.ArrowException as error:
            raise ValueError(f"shard {shard} is not a readable Parquet file") from error


def clip_of_video(path: Path, prompt: str) -> Clip:
    """A user's video as a clip without ground truth; its id is the file's name and a hash of its bytes.

    Raises FileNotFoundError on a missing file and ValueError on one that is no video or is cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist")
    decoded = decode_video(path)
    num_frames, height, width, _ = decoded.frames_THWC.shape
    video = path.read_bytes()
    return Clip(
        clip_id=f"{path.stem}-{hashlib.sha256(video).hexdigest()[:8]}",
        split="",
        subset="other",
        label=-1,
        label_name="",
        prompt=prompt,
        video=video,
        fps=decoded.fps,
        num_frames=num_frames,
        height=height,
        width=width,
    )


def clips_by_id(clips: Iterable[Clip], clip_ids: Sequence[str], data: str) -> list[Clip]:
    """The clips called clip_ids, in that order. Raises ValueError naming the first id that `data` lacks."""
    wanted = set(clip_ids)
    seen: list[str] = []
    found: dict[str, Clip] = {}
    for clip in clips:
        seen.append(clip.clip_id)
        if clip.clip_id in wanted:
            found[clip.clip_id] = clip
    for clip_id in clip_ids:
        if clip_id not in found:
            raise ValueError(f"unknown clip {clip_id!r}: {data} has {len(seen)} clips, such as {', '.join(seen[:3])}")
    return [found[clip_id] for clip_id in clip_ids]


def choose_clips(clips: Iterable[Clip], split: str, num_clips: int, *, label_name: str | None, data: str) -> list[Clip]:
    """num_clips clips of a split, one of each motion in turn, or only those of the motion label_name.

    Where there are more motions than num_clips, they are spread over the motions' names.

    Raises ValueError where the split has no such clip.
    """
    by_label: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.split == split:
            by_label.setdefault(clip.label_name, []).append(clip)
    if not by_label:
        raise ValueError(f"{data} has no clip of split {split!r}")
    if label_name is not None and label_name not in by_label:
        raise ValueError(
            f"{data} has no {split} clip of class {label_name!r} to drive it, only of {', '.join(sorted(by_label))}; "
            f"give --video or --clip"
        )
    names = sorted(by_label) if label_name is None else [label_name]
    if num_clips < len(names):
        names = [names[int((number + 0.5) * len(names) / num_clips)] for number in range(num_clips)]
    queues = [by_label[name] for name in names]
    chosen: list[Clip] = []
    for turn in range(max(len(queue) for queue in queues)):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    return chosen[:num_clips]
