"""Generate gymnastics clips, a few to look at or a data set to train on.

Path:    clips:   arguments -> driving clips -> FinePhysPipeline -> OUTPUT/clips/*, manifest.jsonl, index.html
         dataset: request table -> Ray Data actors -> OUTPUT/shard-*.parquet, manifest.jsonl, index.html

What OUTPUT already holds of the same request is skipped: the same command, run again, continues.
"""

import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from finephys.command_line import is_user_error, run
from finephys.data.clips import Clip
from finephys.data.storage import check_writable
from finephys.generation.driving import choose_clips, clip_of_video, clips_by_id, read_clips
from finephys.generation.manifest import CLIPS_FOLDER, is_done, publish, read_manifest
from finephys.generation.requests import GenerationRequest, OutputFormat, ReferenceName, pipeline_sha256, sha256_of
from finephys.generation.table import NO_DRIVING, index_driving, read_table, recipe_table, staged_table
from finephys.gymnast.motions import motion_name, prompt_for

# Nothing may be looked up on a model hub: the pipeline folder is all there is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


FAILURES_NAME = "failures.jsonl"
# A driving clip, and what is to be generated from it.
Job = tuple[Clip, GenerationRequest]

# What the report says at its foot.
SHOWN_SETTINGS = (
    "pipeline",
    "seed",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "pose_guidance_scale",
    "reference",
)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    # Folder of a trained pipeline (jobs/train.py writes one).
    pipeline: Path = Path("finephys/assets/pipeline")
    # Class to generate, such as "switch leap" or its gym99 id 10; its prompt is made from it.
    action_class: Annotated[str | None, tyro.conf.arg(name="class")] = None
    # Prompt to generate from, instead of a class. Without either, a clip's own prompt.
    prompt: str | None = None
    # A driving video of your own.
    video: Path | None = None
    # Driving clips of --data, by id. Without --video or --clip: the first clips of --split, one of each motion in turn.
    clip: tuple[str, ...] = ()
    # Folder of Parquet shards that hold the driving clips.
    data: str = "finephys/assets/clips"
    # Which clips of --data; "test" is held out from training.
    split: Literal["train", "val", "test"] = "test"
    # How many of them.
    num_clips: int = 4
    # Samples of each, which differ in their noise.
    num_samples: int = 1
    # Folder for the clips and the manifest.
    output: Path = Path("outputs/generate")
    # Of the noise; the same seed gives the same clips.
    seed: int = 0
    # Frames of a generated clip, evenly spread over the driving clip.
    num_frames: int = 16
    # Denoising steps of a clip.
    num_inference_steps: int = 20
    # Strength of the prompt; 1 turns classifier-free guidance off.
    guidance_scale: float = 2.0
    # Strength of the pose guidance beyond what was trained, likewise.
    pose_guidance_scale: float = 1.0
    # Picture that says how person and place look, beside the prompt: the driving clip's first frame, or none.
    reference: ReferenceName = "none"
    # auto: the GPU where there is one.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # CPU threads.
    threads: int = 2
    # Write index.html and metrics.json about all clips in --output.
    report: bool = False
    # Output folder of the training run that the report shows.
    training: Path | None = None

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_samples", "num_frames", "num_inference_steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        for name in ("guidance_scale", "pose_guidance_scale"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a number from 0 on")
        if self.action_class is not None and self.prompt is not None:
            raise ValueError("both --class and --prompt are given, wanted one of them")
        if self.video is not None and self.clip:
            raise ValueError("both --video and --clip are given, wanted one of them")
        if self.video is not None and self.action_class is None and self.prompt is None:
            raise ValueError("--video is given without --class or --prompt, wanted one of them")


def main(config: GenerateConfig) -> None:
    output = config.output
    check_folders(config)
    requests = make_requests(config)
    entries = read_manifest(output)
    pending = [
        (clip, request)
        for clip, request in requests
        if not is_done(output, entries, request.folder_name, request.sha256)
    ]
    if len(pending) < len(requests):
        print(f"{len(requests) - len(pending)} of {len(requests)} clips are done already")
    failures = generate(config, pending) if pending else []
    if len(failures) == len(requests):
        raise ValueError(f"no clip could be generated: {failures[0]['error']}")
    write_failures(output, failures)
    if config.report:
        done = f"open {report(config, requests, failures)}"
    else:
        done = f"{len(requests) - len(failures)} clips in {output / CLIPS_FOLDER}"
    if failures:
        print(f"{len(failures)} clips failed and are listed in {output / FAILURES_NAME}", file=sys.stderr)
    print(f"done: {done}")


def report(config: GenerateConfig, requests: list[Job], failures: list[dict[str, str]]) -> Path:
    """Write the page about all clips of this request that are done."""
    from finephys.evaluation.report import write_report

    entries = read_manifest(config.output)
    done = [
        entries[request.folder_name]
        for _, request in requests
        if is_done(config.output, entries, request.folder_name, request.sha256)
    ]
    settings = {name: str(getattr(config, name)) for name in SHOWN_SETTINGS} | {"failed clips": str(len(failures))}
    return write_report(config.output, done, training=config.training, settings=settings)


def write_failures(output: Path, failures: list[dict[str, str]]) -> None:
    """List the clips of this run that failed; without any, no list is left of an earlier run."""
    path = output / FAILURES_NAME
    if failures:
        output.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(failure) + "\n" for failure in failures), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def check_folders(config: GenerateConfig) -> None:
    """Raise FileNotFoundError, ValueError or OSError unless the pipeline is there and the output can be written."""
    check_pipeline(config.pipeline)
    if config.training is not None and not config.training.is_dir():
        raise FileNotFoundError(f"training folder {config.training} does not exist")
    check_writable(str(config.output))


def check_pipeline(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError unless a pipeline lies there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"pipeline folder {folder} does not exist")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"pipeline folder {folder} holds no model_index.json")


def make_requests(config: GenerateConfig) -> list[Job]:
    """The driving clips with what is to be generated from each, num_samples requests a clip."""
    prompt = config.prompt if config.action_class is None else prompt_for(config.action_class)
    pipeline_hash = pipeline_sha256(config.pipeline)
    requests = []
    for clip in driving_clips(config, prompt):
        for sample in range(config.num_samples):
            request = GenerationRequest(
                clip_id=clip.clip_id,
                sample=sample,
                prompt=clip.prompt if prompt is None else prompt,
                seed=config.seed,
                num_frames=config.num_frames,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                pose_guidance_scale=config.pose_guidance_scale,
                reference=config.reference,
                driving_sha256=sha256_of(clip.video),
                pipeline_sha256=pipeline_hash,
            )
            requests.append((clip, request))
    return requests


def driving_clips(config: GenerateConfig, prompt: str | None) -> list[Clip]:
    """The clips whose motion is generated."""
    if config.video is not None:
        return [clip_of_video(config.video, prompt or "")]
    clips = read_clips(config.data)
    if config.clip:
        return clips_by_id(clips, config.clip, config.data)
    label_name = None if config.action_class is None else motion_name(config.action_class)
    return choose_clips(clips, config.split, config.num_clips, label_name=label_name, data=config.data)


def generate(config: GenerateConfig, pending: list[Job]) -> list[dict[str, str]]:
    """Load the pipeline, generate and publish one clip after the other; returns those that failed, with the reason."""
    # These load torch and diffusers: seconds that a wrong argument and --help need not wait for.
    import torch
    from tqdm import tqdm

    if not torch.cuda.is_available():
        # diffusers imports DeepSpeed where it is installed, which otherwise warns about what it did not find.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # What libraries say about their own future is nothing to the person who generates.
    warnings.simplefilter("ignore")
    import diffusers
    import transformers
    from safetensors import SafetensorError

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()

    from finephys.diffusion.pipeline import FinePhysPipeline
    from finephys.generation.clip import generate_clip, write_clip

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and this machine's torch sees no CUDA device")
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(config.threads)
    try:
        pipeline = FinePhysPipeline.from_pretrained(config.pipeline).to(device)
    except (ValueError, OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"pipeline folder {config.pipeline} does not load: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    failures: list[dict[str, str]] = []
    with tqdm(total=len(pending) * config.num_inference_steps, unit="step", smoothing=0.1) as progress:
        for number, (clip, request) in enumerate(pending):
            progress.set_description(clip.clip_id)
            progress.n = number * config.num_inference_steps
            try:
                hops, measures = generate_clip(pipeline, clip, request, on_step=progress.update)
            except ValueError as error:
                if not is_user_error(error):
                    raise
                # One corrupt clip does not stop the others.
                failures.append({"clip_id": clip.clip_id, "error": f"clip {clip.clip_id}: {error}"})
                progress.write(f"finephys: {failures[-1]['error']}", file=sys.stderr)
                continue
            entry = {
                "request_sha256": request.sha256,
                "request": asdict(request),
                "clip_id": clip.clip_id,
                "sample": request.sample,
                "label_name": clip.label_name,
                "split": clip.split,
                "prompt": request.prompt,
                "measures": measures,
            }
            publish(config.output, request.folder_name, entry, partial(write_clip, hops=hops))
    return failures


# --- dataset


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    # Parquet or CSV file with a row for each clip: clip (id of a driving clip), prompt, seed. Without it, the recipe:
    requests: Path | None = None
    # Classes of the driving clips, such as "cartwheel jump"; all classes if none is given.
    classes: tuple[str, ...] = ()
    # Driving clips of each class ...
    clips_per_class: int = 4
    # ... or, instead of driving clips, so many performers (bodies, and how well they do it) whose elements are
    # choreographed anew, each seen by so many cameras ...
    performers: int = 0
    cameras: int = 1
    # ... looks (leotard, skin, hair, arena, as prompts) of each clip ...
    looks_per_clip: int = 1
    # ... and seeds of each look.
    seeds_per_look: int = 1
    # First of the seeds; also chooses the looks.
    seed: int = 0
    # Which clips of --data drive the recipe.
    split: Literal["train", "val", "test"] = "train"
    # Folder or URL of Parquet shards that hold the driving clips.
    data: str = "finephys/assets/clips"
    # Folder of a trained pipeline, on every node.
    pipeline: Path = Path("finephys/assets/pipeline")
    # Folder or URL of the data set.
    output: str = "outputs/dataset"
    # Clip records in Parquet shards, which train the next model, or mp4 files.
    format: OutputFormat = "shards"
    clips_per_shard: int = 64
    num_frames: int = 16
    num_inference_steps: int = 20
    guidance_scale: float = 2.0
    pose_guidance_scale: float = 1.0
    reference: ReferenceName = "none"
    # Quality gate: make a clip anew, with the next seed, if fewer guidance joints than this share are found in it.
    min_pck: float | None = None
    # Likewise if its joints jump about the guidance, from frame to frame, by more than this share of the body's box.
    max_jump: float | None = None
    # Seeds that the gate may try before the clip counts as failed.
    max_seeds: int = 3
    # Actors, each with a pipeline of its own; as many as there is room and work for.
    min_actors: int = 1
    max_actors: int = 2
    cpus_per_actor: float = 1.0
    # Share of a GPU for an actor; 0 generates on the CPU.
    gpus_per_actor: float = 0.0
    # CPU threads of an actor. Another number may change the last bits of a clip.
    threads: int = 1
    # Times that a clip may take its process down before it counts as failed.
    max_attempts: int = 3
    # Stop where no clip is done for so long.
    stall_minutes: float = 30.0
    # Exit with code 1 where more than this share of the clips failed.
    max_failed_share: float = 0.05

    def __post_init__(self) -> None:
        counts = ("clips_per_class", "cameras", "looks_per_clip", "seeds_per_look", "clips_per_shard", "num_frames")
        for name in (*counts, "num_inference_steps", "max_seeds", "min_actors", "threads", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        for name in ("guidance_scale", "pose_guidance_scale", "gpus_per_actor", "seed", "performers"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a number from 0 on")
        if self.max_actors < self.min_actors:
            raise ValueError(f"max_actors is {self.max_actors} and min_actors {self.min_actors}, wanted max >= min")
        for name in ("max_failed_share", "min_pck", "max_jump"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 to 1")
        for name in ("stall_minutes", "cpus_per_actor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a positive number")
        if self.requests is not None and (self.classes or self.performers):
            given = "--classes" if self.classes else "--performers"
            raise ValueError(f"both --requests and {given} are given, wanted one of them")
        if self.performers and self.reference == "first":
            raise ValueError("reference is 'first' with --performers, whose clips have no picture; wanted 'none'")


def dataset(config: DatasetConfig) -> None:
    """Generate what the table or the recipe asks for."""
    check_pipeline(config.pipeline)
    check_writable(config.output)
    driving = NO_DRIVING if config.performers else index_driving(config.data)
    if config.requests is not None:
        rows = read_table(config.requests, driving)
    elif config.performers:
        rows = staged_table(
            classes=config.classes,
            performers=config.performers,
            cameras=config.cameras,
            looks_per_clip=config.looks_per_clip,
            seeds_per_look=config.seeds_per_look,
            seed=config.seed,
        )
    else:
        rows = recipe_table(
            driving,
            classes=config.classes,
            split=config.split,
            clips_per_class=config.clips_per_class,
            looks_per_clip=config.looks_per_clip,
            seeds_per_look=config.seeds_per_look,
            seed=config.seed,
        )
    # Ray and its libraries: seconds that a wrong argument need not wait for.
    from finephys.generation import batch
    from finephys.generation.gallery import write_gallery

    shared = {field.name for field in fields(batch.BatchSettings)} - {"pipeline", "pipeline_sha256"}
    settings = batch.BatchSettings(
        pipeline=str(config.pipeline.absolute()),
        pipeline_sha256=pipeline_sha256(config.pipeline),
        **{name: getattr(config, name) for name in shared},
    )
    tasks = batch.plan_tasks(rows, settings, sha256_of("\n".join(sorted(driving.shard)).encode()))
    batch.claim_output(config.output, tasks, settings)
    num_clips, failures = batch.generate_dataset(tasks, driving, settings, config.output)
    page = write_gallery(config.output, config.pipeline)
    print(f"done: {num_clips} of {len(tasks)} clips in {config.output}; open {page}")
    if len(failures) > config.max_failed_share * len(tasks):
        print(
            f"finephys: {len(failures)} of {len(tasks)} clips failed, more than max_failed_share "
            f"{config.max_failed_share}: {failures[0]['clip_id']}: {failures[0]['error']}",
            file=sys.stderr,
        )
        raise SystemExit(1)


def either(config: GenerateConfig | DatasetConfig) -> None:
    """Do what the chosen configuration is of."""
    if isinstance(config, GenerateConfig):
        main(config)
    else:
        dataset(config)


if __name__ == "__main__":
    run(
        either,
        {"clips": GenerateConfig(), "dataset": DatasetConfig()},
        description=(
            "Generate gymnastics clips: the motion comes from a driving clip, the look from a class or a prompt.\n"
            "clips, the default, writes mp4, GIF and a sheet of every hop for each. dataset makes thousands on Ray,\n"
            "as Parquet shards with ground truth or as mp4. Run again, the same command does only what is not done."
        ),
        examples=(
            "--num-clips 4 --reference first --output outputs/held_out --report",
            "--class backflip --num-clips 1",
            "--class backflip --video my_backflip.mp4",
            '--prompt "A gymnast with dark skin and black hair in a red leotard jumps." --video jump.mp4 --seed 1',
            "--pipeline outputs/train/pipeline --clip CLIP_ID --num-samples 3",
            "dataset --classes cartwheel jump --clips-per-class 10 --looks-per-clip 5 --output outputs/dataset",
            "dataset --performers 20 --cameras 3 --looks-per-clip 2 --output outputs/staged",
            "dataset --requests requests.csv --min-pck 0.6 --output s3://bucket/dataset",
        ),
    )
