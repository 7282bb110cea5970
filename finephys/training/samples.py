"""Videos that a run makes of its validation clips at intervals, to be looked at.

Path:    validation batch, averaged weights -> OUTPUT/samples/step-00000150/CLIP.mp4
Letters: none
Units:   frames a second
"""

from functools import partial

import torch

from finephys.config import TrainConfig
from finephys.data import storage
from finephys.data.video import encode_video
from finephys.training.batches import LabelledBatch
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.page import SAMPLES_FOLDER
from finephys.training.patience import patiently
from finephys.training.stages import Sampler
from finephys.training.zero import Engine


def write_samples(
    config: TrainConfig,
    engine: Engine,
    average: ExponentialMovingAverage,
    sampler: Sampler,
    batch: LabelledBatch,
    step: int,
) -> None:
    """Generate a video for each clip of `batch` with the averaged weights; every rank calls this, rank 0 writes."""
    engine.train(False)
    tensors = {name: value.to(engine.device) for name, value in batch.tensors.items()}
    with average.swapped_in(engine.live_values()), torch.random.fork_rng(devices=engine.cuda_devices):
        videos = sampler(engine.module, tensors)
    if engine.rank == 0:
        folder = storage.join(config.output, SAMPLES_FOLDER, f"step-{step:08d}")
        for clip_id, (frames_FHWC, fps) in zip(batch.clip_ids, videos, strict=True):
            url, video = storage.join(folder, f"{clip_id}.mp4"), encode_video(frames_FHWC, fps)
            patiently(partial(storage.write_bytes, url, video), 60 * config.storage_patience_minutes)
    engine.barrier()
