"""Ray around the loop: rows from Ray Data, ranks from Ray Train, restarts after failures, export at the end.

Path:    TrainConfig -> rows -> Ray Train -> loop on each rank -> OUTPUT/{metrics.jsonl, checkpoints, pipeline}
Letters: none
Units:   minutes

Everything that a user can get wrong is checked by `prepare` before Ray starts.
"""

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from tqdm import tqdm

from finephys.config import TrainConfig
from finephys.data import storage
from finephys.data.index import ClipIndex, index_clips
from finephys.data.rows import collect_rows
from finephys.telemetry import MetricsLog, TensorBoardLog, plot_losses, read_history, read_metrics
from finephys.training import batches as ordering
from finephys.training import ray_rows
from finephys.training.checkpoint import (
    Checkpoint,
    is_resharding,
    latest_checkpoint,
    load_checkpoint,
    stream_positions,
)
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.estimate import CPUS_FOR_DATA
from finephys.training.export import export_pipeline, is_exported
from finephys.training.loop import Outcome, train
from finephys.training.page import write_page
from finephys.training.ray_failures import NoRetryOfRefused, refusing, told_in_one_line
from finephys.training.ray_metrics import PrometheusGauges
from finephys.training.stages import Sampler, Stage
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
    _check_init_parts(config, stage)
    storage.check_writable(config.output)
    train_clips = validation_clips = None
    if stage.rows != "windows":
        train_clips = index_clips(config.data, config.rows.train_split)
        if config.rows.train_clips is not None:
            train_clips = train_clips.evenly(config.rows.train_clips)
        validation_clips = index_clips(config.data, config.rows.validation_split)
        validation_clips = validation_clips.evenly(config.rows.validation_clips)
    return Prepared(train_clips=train_clips, validation_clips=validation_clips, resume_from=latest_checkpoint(config))


def run(config: TrainConfig, stage: Stage) -> Outcome:
    """Train `config` to its end or its deadline and export; a run that was interrupted continues.

    Raises what `prepare` raises, ValueError where a rank finds more of the kind, and JobFailed where a loss or gradient
    is not finite or ranks were lost more often than config.max_failures.
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
        _fit(config, stage, prepared, first_step, deadline_s)

    newest = latest_checkpoint(config)
    assert newest is not None, "a run that ended without an error wrote a checkpoint"
    storage.delete_folder(_scratch(config))
    before = [run for run in read_history(config.init) if run["stage"] == config.stage]
    plot_losses(config.output, before)
    write_page(config)
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


def _held_datasets(config: TrainConfig, stage: Stage, prepared: Prepared) -> dict[str, ray.data.Dataset]:
    """The rows of validation, and of training where the ranks hold them."""
    if stage.rows == "windows":
        windows = {"validation": ray_rows.validation_windows(config, stage)}
        if config.rows.num_windows is not None:
            windows["train"] = ray_rows.held_windows(config, stage, config.rows.num_windows)
        return windows
    assert prepared.validation_clips is not None
    wanted = {"validation": prepared.validation_clips}
    if config.rows.materialise:
        assert prepared.train_clips is not None
        wanted = {"train": prepared.train_clips, **wanted}
    datasets, failures = {}, []
    for name, index in wanted.items():
        datasets[name], failed = ray_rows.held_rows(config, stage, index, name)
        failures += failed
    ray_rows.write_failures(storage.join(config.output, "failures-rows.jsonl"), failures)
    return datasets


def _check_init_parts(config: TrainConfig, stage: Stage) -> None:
    wanted = list(stage.init_parts)
    if stage.rows == "features":
        wanted += ["vae"] if config.rows.pose_source == "truth" else ["vae", "pose_estimator", "lifter"]
    if not wanted:
        return
    if config.init is None:
        raise ValueError(f"stage {config.stage} needs --init: a pipeline folder with {', '.join(wanted)}")
    for part in wanted:
        if not storage.exists(storage.join(config.init, part)):
            raise FileNotFoundError(f"init {config.init} has no {part}, which stage {config.stage} needs")


# --- ranks


def _fit(
    config: TrainConfig,
    stage: Stage,
    prepared: Prepared,
    first_step: int,
    deadline_s: float | None,
) -> None:
    filesystem, path = storage.open_filesystem(_scratch(config))
    trainer = TorchTrainer(
        _train_on_rank,
        train_loop_config={
            "config": config,
            "stage": stage,
            "train_clips": prepared.train_clips,
            "deadline_s": deadline_s,
        },
        datasets=_held_datasets(config, stage, prepared),
        # Rows that are held go whole to every rank, which picks its own.
        dataset_config=DataConfig(
            datasets_to_split=[], execution_options=ray.data.ExecutionOptions(preserve_order=True)
        ),
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
            callbacks=[NoRetryOfRefused()],
        ),
    )
    with _progress(config, first_step), told_in_one_line(config.max_failures):
        trainer.fit()


def _scratch(config: TrainConfig) -> str:
    """Where Ray Train keeps its own notes while a run lasts."""
    return storage.join(config.output, "ray_train")


@contextmanager
def _progress(config: TrainConfig, first_step: int) -> Iterator[None]:
    """A bar on the driver's stderr that follows the metrics file."""
    is_done = threading.Event()
    seconds = ray_rows.seconds_between_looks()

    def follow() -> None:
        with tqdm(total=config.steps, initial=first_step, desc=config.stage, unit="step", mininterval=0) as bar:
            while True:
                is_last = is_done.wait(seconds)
                trained = []
                with suppress(OSError):
                    trained = [line for line in read_metrics(config.output) if line["split"] == "train"]
                if trained:
                    newest = trained[-1]
                    bar.set_postfix_str(
                        f"loss {newest['loss']:.4g}, {newest['samples_per_s']:.1f} samples/s, "
                        f"{newest['frames_per_s']:.0f} frames/s, {newest['data_wait_share']:.0%} waiting, "
                        f"{newest['resident_mb']:.0f} MB",
                        False,
                    )
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
    with refusing():
        _train_from_checkpoint(job)


def _train_from_checkpoint(job: dict[str, Any]) -> None:
    config: TrainConfig = job["config"]
    stage: Stage = job["stage"]
    torch.set_num_threads(config.threads)
    rank = ray.train.get_context().get_world_rank()

    resume_from = latest_checkpoint(config)
    first_step = 0 if resume_from is None else resume_from.step
    # A stream's actors start while the module is built.
    if stage.rows == "windows" and config.rows.num_windows is None:
        windows = ray_rows.window_stream(config, stage, rank, first_step)
        batches = ordering.streamed_batches(windows, stage.collate, config, rank, first_step)
    elif stage.rows == "windows" or config.rows.materialise:
        rows, _ = collect_rows(_tables("train"))
        batches = ordering.held_batches(rows, stage.collate, config, rank, first_step)
    else:
        position = stream_positions(resume_from, config.num_workers)[rank]
        clips = ray_rows.clip_stream(config, stage, job["train_clips"], rank, position)
        batches = ordering.streamed_batches(clips, stage.collate, config, rank, first_step)
    held, _ = collect_rows(_tables("validation"))
    validation = ordering.validation_batches(held, stage.collate, config)

    module = build_module(config, stage)
    engine = Engine(module, config, is_resharding=is_resharding(resume_from, config.num_workers))
    average = ExponentialMovingAverage(engine.live_values(), config.optimizer.ema_decay)
    if resume_from is not None:
        load_checkpoint(resume_from, engine, average)

    train(
        config,
        engine,
        average,
        batches,
        validation,
        MetricsLog(config.output, first_step, is_writer=rank == 0),
        TensorBoardLog(config.output, first_step, is_writer=rank == 0),
        first_step=first_step,
        deadline_s=job["deadline_s"],
        report=PrometheusGauges(rank),
        sampler=_build_sampler(config, stage),
    )


def build_module(config: TrainConfig, stage: Stage) -> torch.nn.Module:
    """The stage's module in float32, the same on every rank; a remote config.init is fetched by each."""
    with _local_init(config) as init:
        torch.manual_seed(config.seed)
        return stage.build(config.module, init).float()


def _build_sampler(config: TrainConfig, stage: Stage) -> Sampler | None:
    if stage.sampler is None or config.sample_every is None:
        return None
    with _local_init(config) as init:
        assert init is not None, "a stage that makes videos takes its VAE from init"
        return stage.sampler(init)


@contextmanager
def _local_init(config: TrainConfig) -> Iterator[Path | None]:
    if config.init is None:
        yield None
    elif storage.is_local(config.init):
        yield storage.local_path(config.init)
    else:
        with tempfile.TemporaryDirectory(prefix="finephys-init-") as scratch:
            storage.download_folder(config.init, Path(scratch))
            yield Path(scratch)


def _tables(name: str) -> Iterator[Any]:
    shard = ray.train.get_dataset_shard(name)
    yield from shard.iter_batches(batch_size=None, batch_format="pyarrow")
