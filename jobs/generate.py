"""Generate gymnastics clips: a class or a prompt, and the motion of a driving clip, to mp4, GIF and sheet.

Path:    arguments -> driving clips -> FinePhysPipeline -> OUTPUT/clips/*, OUTPUT/manifest.jsonl, OUTPUT/index.html

Clips that the manifest already holds for the same request are skipped: the same command, run again, continues.
"""

import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from finephys.command_line import is_user_error, run
from finephys.data.clips import Clip
from finephys.data.storage import check_writable
from finephys.generation.driving import choose_clips, clip_of_video, clips_by_id, read_clips
from finephys.generation.manifest import CLIPS_FOLDER, is_done, publish, read_manifest
from finephys.generation.requests import GenerationRequest, pipeline_sha256, sha256_of
from finephys.gymnast.motions import motion_name, prompt_for

# Nothing may be looked up on a model hub: the pipeline folder is all there is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


FAILURES_NAME = "failures.jsonl"
# A driving clip, and what is to be generated from it.
Job = tuple[Clip, GenerationRequest]

# What the report says at its foot.
SHOWN_SETTINGS = ("pipeline", "seed", "num_frames", "num_inference_steps", "guidance_scale", "pose_guidance_scale")


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
    if not config.pipeline.is_dir():
        raise FileNotFoundError(f"pipeline folder {config.pipeline} does not exist")
    if not (config.pipeline / "model_index.json").is_file():
        raise ValueError(f"pipeline folder {config.pipeline} holds no model_index.json")
    if config.training is not None and not config.training.is_dir():
        raise FileNotFoundError(f"training folder {config.training} does not exist")
    check_writable(str(config.output))


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


if __name__ == "__main__":
    run(
        main,
        GenerateConfig,
        description=(
            "Generate gymnastics clips: the motion comes from a driving clip, the look from a class or a prompt.\n"
            "Writes mp4, GIF and a sheet of every hop for each clip, and a manifest line when the clip is complete.\n"
            "The same command, run again, does only what is not done."
        ),
        examples=(
            "--num-clips 4 --output outputs/held_out --report",
            "--class backflip --num-clips 1",
            "--class backflip --video my_backflip.mp4",
            '--prompt "A gymnast with dark skin and black hair in a red leotard jumps." --video jump.mp4 --seed 1',
            "--pipeline outputs/train/pipeline --clip CLIP_ID --num-samples 3",
        ),
    )
