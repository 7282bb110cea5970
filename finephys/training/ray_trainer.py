"""Ray around the loop: rows from Ray Data, ranks from Ray Train, restarts after failures, export at the end.

Path:    TrainConfig -> rows -> Ray Train -> loop on each rank -> OUTPUT/{metrics.jsonl, checkpoints, pipeline}
Letters: none
Units:   minutes

Everything that a user can get wrong is checked by `prepare` before Ray starts.
"""

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from tqdm import tqdm

from finephys.config import TrainConfig
from finephys.data import pipeline, storage
from finephys.data.pipeline import ClipIndex, Row
from finephys.telemetry import MetricsLog, plot_losses, read_metrics
from finephys.training import batches as ordering
from finephys.training.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.estimate import CPUS_FOR_DATA
from finephys.training.export import export_pipeline, is_exported
from finephys.training.loop import Outcome, train
from finephys.training.stages import Stage
from finephys.training.zero import Engine


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` found: the clips (None for synthetic rows) and the checkpoint to resume from."""

    train_clips: ClipIndex | None
    validation_clips: ClipIndex | None
    resume_from: Checkpoint | None


def prepare(config: TrainConfig, stage: Stage) -> Prepared:
    """Check everything a run needs without starting Ray or writing anything.

    Raises ValueError, FileNotFoundError or OSError, in one line, on: missing data, an empty split, shards of an unknown
    schema, a missing init, an output that cannot be written, a checkpoint of another configuration, a GPU that is not
    there.
    """
    if config.use_gpu and "RAY_ADDRESS" not in os.environ and torch.cuda.device_count() < config.num_workers:
        raise ValueError(
            f"use_gpu is True and num_workers {config.num_workers}, this machine has {torch.cuda.device_count()} GPUs"
        )
    if config.init is not None and not storage.exists(storage.join(config.init, "model_index.json")):
        if not storage.exists(config.init):
            raise FileNotFoundError(f"init {config.init} does not exist")
        if not storage.list_folders(config.init):
            raise ValueError(f"init {config.init} is no pipeline folder: it holds no part such as vae or unet")
    if stage.rows == "features":
        _check_feature_parts(config)
    storage.check_writable(config.output)
    train_clips = validation_clips = None
    if stage.rows != "windows":
        train_clips = pipeline.index_clips(config.data, config.rows.train_split)
        if config.rows.train_clips is not None:
            train_clips = train_clips.evenly(config.rows.train_clips)
        validation_clips = pipeline.index_clips(config.data, config.rows.validation_split)
        validation_clips = validation_clips.evenly(config.rows.validation_clips)
    return Prepared(train_clips=train_clips, validation_clips=validation_clips, resume_from=latest_checkpoint(config))


def run(config: TrainConfig, stage: Stage) -> Outcome:
    """Train `config` to its end or its deadline and export; a run that was interrupted continues.

    Raises what `prepare` raises, and RuntimeError where the run failed more often than config.max_failures.
    """
    started_s = time.time()
    if not config.use_gpu:
        # diffusers imports DeepSpeed where it finds it, which then looks for an accelerator and says so.
        os.environ["DS_ACCELERATOR"] = "cpu"
    prepared = prepare(config, stage)
    pipeline_url = storage.join(config.output, "pipeline")
    resume_from = prepared.resume_from
    if resume_from is not None:
        if resume_from.step >= config.steps and is_exported(resume_from, config, pipeline_url):
            print(f"finephys: {config.output} is finished: {resume_from.step} of {config.steps} steps", file=sys.stderr)
            return Outcome(step=resume_from.step, is_finished=True)
        print(f"finephys: continuing {resume_from.url}", file=sys.stderr)

    if resume_from is None or resume_from.step < config.steps:
        start_ray(config)
        deadline_s = None if config.max_minutes is None else started_s + 60 * config.max_minutes
        first_step = 0 if resume_from is None else resume_from.step
        datasets = _datasets(config, stage, prepared, first_step)
        _fit(config, stage, datasets, first_step, deadline_s)

    newest = latest_checkpoint(config)
    assert newest is not None, "a run that ended without an error wrote a checkpoint"
    storage.delete_folder(_scratch(config))
    plot_losses(config.output)
    # Last: a run whose pipeline is whole counts as finished.
    export_pipeline(newest, config, stage, pipeline_url)
    return Outcome(step=newest.step, is_finished=newest.step >= config.steps)


def start_ray(config: TrainConfig) -> None:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), or start a local Ray for this process alone."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ranks stay in the driver's folder, or a relative --output or --init would mean another place there.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
    else:
        ray.init(
            address="local",
            num_cpus=max(config.local_cpus, int(config.num_workers * config.cpus_per_worker) + CPUS_FOR_DATA),
            object_store_memory=int(config.object_store_gb * 1024**3),
            include_dashboard=False,
            # What happens is in OUTPUT, and what goes wrong comes back as an exception.
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)


# --- rows


def _datasets(config: TrainConfig, stage: Stage, prepared: Prepared, first_step: int) -> dict[str, ray.data.Dataset]:
    """The rows of training and of validation, made now where they are held, lazily where they stream."""
    if stage.rows == "windows":
        assert stage.sample_window is not None
        assert stage.sample_validation_window is not None
        num_seen = first_step * config.global_batch
        num_left = (config.steps - first_step) * config.global_batch
        num_validation = config.validation_batches * config.batch_size
        if config.rows.num_windows is not None:
            num_seen, num_left = 0, config.rows.num_windows
        return {
            # The stream starts where the checkpoint stopped, so that nothing is made again only to be skipped.
            "train": pipeline.window_rows(stage.sample_window, num_seen, num_left, config.seed),
            "validation": pipeline.window_rows(stage.sample_validation_window, 0, num_validation, config.seed),
        }
    assert prepared.train_clips is not None
    assert prepared.validation_clips is not None
    datasets = {}
    failures: list[Row] = []
    for name, index in (("train", prepared.train_clips), ("validation", prepared.validation_clips)):
        if stage.rows == "features":
            assert config.init is not None
            rows = pipeline.feature_rows(index, config.init, config.rows)
        else:
            rows = pipeline.decoded_rows(index)
        if config.rows.materialise or name == "validation":
            started = time.perf_counter()
            rows = rows.materialize()
            failed = _count_rows(rows, index)
            failures += failed
            num_sound = len(index.clip_ids) - len(failed)
            seconds = time.perf_counter() - started
            print(
                f"finephys: {name} rows: {len(index.clip_ids)} clips = {num_sound} + {len(failed)} failed, "
                f"{rows.size_bytes() / 1e6:.0f} MB, {seconds:.0f} s",
                file=sys.stderr,
            )
            if num_sound == 0:
                raise ValueError(f"every clip of split {index.split} failed, the first with: {failed[0]['error']}")
        datasets[name] = rows
    _write_failures(config.output, "rows", failures)
    return datasets


def _count_rows(rows: ray.data.Dataset, index: ClipIndex) -> list[Row]:
    """The failures among materialised rows; asserts that every clip went in once and came out once."""
    table = rows.select_columns(["clip_id", "error"]).take_all()
    assert sorted(row["clip_id"] for row in table) == list(index.clip_ids), "a clip was lost or doubled on its way"
    return [row for row in table if row["error"] is not None]


def _write_failures(output: str, source: str, failures: list[Row]) -> None:
    """OUTPUT/failures-SOURCE.jsonl: clip_id and error of each clip that was left out; absent where there are none."""
    if failures:
        lines = [json.dumps({"clip_id": row["clip_id"], "error": row["error"]}) for row in failures]
        storage.write_bytes(storage.join(output, f"failures-{source}.jsonl"), "".join(f"{x}\n" for x in lines).encode())
        print(f"finephys: {len(failures)} clips failed, see {output}/failures-{source}.jsonl", file=sys.stderr)


def _check_feature_parts(config: TrainConfig) -> None:
    wanted = ["vae"] if config.rows.pose_source == "truth" else ["vae", "pose_estimator", "lifter"]
    if config.init is None:
        raise ValueError(f"stage {config.stage} needs --init: a pipeline folder with {', '.join(wanted)}")
    for part in wanted:
        if not storage.exists(storage.join(config.init, part)):
            raise FileNotFoundError(f"init {config.init} has no {part}, which stage {config.stage} needs")


# --- ranks


def _fit(
    config: TrainConfig,
    stage: Stage,
    datasets: dict[str, ray.data.Dataset],
    first_step: int,
    deadline_s: float | None,
) -> None:
    filesystem, path = storage.open_filesystem(_scratch(config))
    # Rows that are held go whole to every rank, which picks its own; a stream is shared out.
    split = ["train"] if _is_streamed(config, stage) else []
    options = ray.data.ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        _train_on_rank,
        train_loop_config={"config": config, "stage": stage, "stream_start": first_step, "deadline_s": deadline_s},
        datasets=datasets,
        dataset_config=DataConfig(datasets_to_split=split, execution_options=options),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        run_config=RunConfig(
            # A name of its own each time: what to resume from is the checkpoints' business, not Ray Train's.
            name=f"start-{time.time_ns()}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    with _progress(config, first_step):
        trainer.fit()


def _scratch(config: TrainConfig) -> str:
    """Where Ray Train keeps its own notes while a run lasts."""
    return storage.join(config.output, "ray_train")


@contextmanager
def _progress(config: TrainConfig, first_step: int) -> Iterator[None]:
    """A bar on the driver's stderr that follows the metrics file; in a log file, a line every half minute."""
    is_done = threading.Event()
    seconds = 1.0 if sys.stderr.isatty() else 30.0

    def follow() -> None:
        with tqdm(total=config.steps, initial=first_step, desc=config.stage, unit="step", mininterval=0) as bar:
            while True:
                is_last = is_done.wait(seconds)
                trained = [line for line in read_metrics(config.output) if line["split"] == "train"]
                if trained:
                    newest = trained[-1]
                    bar.set_postfix_str(f"loss {newest['loss']:.4g}, {newest['samples_per_s']:.1f} samples/s", False)
                    bar.update(newest["step"] - bar.n)
                if is_last:
                    return

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join(timeout=5)


def _train_on_rank(job: dict[str, Any]) -> None:
    """What one rank does, from its module to the last step; runs anew after a failure."""
    config: TrainConfig = job["config"]
    stage: Stage = job["stage"]
    torch.set_num_threads(config.threads)
    rank = ray.train.get_context().get_world_rank()

    module = build_module(config, stage)
    engine = Engine(module, config)
    average = ExponentialMovingAverage(engine.live_values(), config.optimizer.ema_decay)
    resume_from = latest_checkpoint(config)
    first_step = 0
    if resume_from is not None:
        load_checkpoint(resume_from, engine, average)
        first_step = resume_from.step

    held, _ = pipeline.collect_rows(_tables("validation"))
    validation = ordering.validation_batches(held, stage.collate, config)
    if _is_streamed(config, stage):
        # A stream of windows starts at the step where this start of the driver found a checkpoint.
        stream_start = job["stream_start"] if stage.rows == "windows" else 0
        num_skipped = (first_step - stream_start) * config.batch_size * config.accumulation
        rows_of_epoch = _Stream(config.output, rank)
        batches = ordering.streamed_batches(rows_of_epoch, stage.collate, config, rank, first_step, num_skipped)
    else:
        rows, _ = pipeline.collect_rows(_tables("train"))
        batches = ordering.held_batches(rows, stage.collate, config, rank, first_step)

    train(
        config,
        engine,
        average,
        ordering.prefetched(batches),
        validation,
        MetricsLog(config.output, first_step, is_writer=rank == 0),
        first_step=first_step,
        deadline_s=job["deadline_s"],
        report=ray.train.report,
    )


def build_module(config: TrainConfig, stage: Stage) -> torch.nn.Module:
    """The stage's module in float32, the same on every rank; a remote config.init is fetched by each."""
    torch.manual_seed(config.seed)
    if config.init is None:
        return stage.build(config.module, None).float()
    if storage.is_local(config.init):
        return stage.build(config.module, storage.local_path(config.init)).float()
    with tempfile.TemporaryDirectory(prefix="finephys-init-") as scratch:
        storage.download_folder(config.init, Path(scratch))
        return stage.build(config.module, Path(scratch)).float()


def _is_streamed(config: TrainConfig, stage: Stage) -> bool:
    return config.rows.num_windows is None if stage.rows == "windows" else not config.rows.materialise


def _tables(name: str) -> Iterator[Any]:
    shard = ray.train.get_dataset_shard(name)
    yield from shard.iter_batches(batch_size=pipeline.CLIPS_PER_BATCH, batch_format="pyarrow")


class _Stream:
    """This rank's sound rows of an epoch, in the stream's order; the others go into the failures table, once each."""

    def __init__(self, output: str, rank: int) -> None:
        self.output = output
        self.rank = rank
        self.failures: dict[str, Row] = {}

    def __call__(self, epoch: int) -> Iterator[Row]:
        del epoch
        for table in _tables("train"):
            for row in pipeline.to_rows(table):
                if "error" not in row:
                    yield row
                elif row["clip_id"] not in self.failures:
                    self.failures[row["clip_id"]] = row
                    _write_failures(self.output, f"stream-rank{self.rank}", list(self.failures.values()))
