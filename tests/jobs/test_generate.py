"""jobs/generate.py as a person meets it: one line for each mistake, and a run that is continued, not repeated."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finephys.data.clips import Clip, write_shard
from finephys.data.video import decode_video, encode_video
from finephys.evaluation.video import MEASURES
from finephys.generation.driving import read_clips
from finephys.generation.manifest import read_manifest

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "finephys" / "assets" / "clips"


def _generate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/generate.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def _clip(clip_id: str, split: str, label_name: str) -> Clip:
    return Clip(
        clip_id=clip_id,
        split=split,
        subset="other",
        label=-1,
        label_name=label_name,
        prompt="A gymnast jumps.",
        video=encode_video(np.zeros((4, 16, 16, 3), np.uint8), 30.0),
        fps=30.0,
        num_frames=4,
        height=16,
        width=16,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, videos good and bad, and what passes for a pipeline until one is loaded."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "clips").mkdir()
    write_shard([_clip("jump-1", "test", "jump"), _clip("kick-1", "train", "kick")], folder / "clips" / "a.parquet")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "model_index.json").write_text("{}")
    video = encode_video(np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8), 30.0)
    (folder / "good.mp4").write_bytes(video)
    (folder / "cut.mp4").write_bytes(video[: len(video) // 2])
    (folder / "file").touch()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.parquet").write_bytes(b"PAR1 no more")
    return folder


# Arguments, where {} is the folder; and what the one line must name.
MISTAKES = {
    "missing pipeline": (["--pipeline", "{}/none"], ["{}/none", "does not exist"]),
    "not a pipeline": (["--pipeline", "{}/clips"], ["{}/clips", "model_index.json"]),
    "missing data": (["--data", "{}/none"], ["{}/none", "does not exist"]),
    "broken shard": (["--data", "{}/broken"], ["{}/broken/a.parquet", "not a readable Parquet file"]),
    "missing video": (["--prompt", "x", "--video", "{}/none.mp4"], ["{}/none.mp4", "does not exist"]),
    "truncated video": (["--prompt", "x", "--video", "{}/cut.mp4"], ["{}/cut.mp4", "cut short"]),
    "unknown class": (["--class", "flipback"], ["'flipback'", "backflip", "cartwheel"]),
    "class without clips": (["--class", "backflip"], ["'backflip'", "jump", "--video"]),
    "class and prompt": (["--class", "backflip", "--prompt", "x"], ["both --class and --prompt"]),
    "video without words": (["--video", "{}/good.mp4"], ["--class or --prompt"]),
    "unknown clip": (["--clip", "nobody"], ["'nobody'", "jump-1"]),
    "empty split": (["--split", "val"], ["'val'"]),
    "output is a file": (["--output", "{}/file/out"], ["{}/file"]),
    "unknown option": (["--num-step", "3"], ["--num-step"]),
    "not a number": (["--seed", "one"], ["--seed", "'one'"]),
    "no clips": (["--num-clips", "0"], ["num_clips is 0", "at least 1"]),
    "missing training": (["--training", "{}/none"], ["{}/none", "does not exist"]),
}


def _given(place: Path, mistake: str) -> list[str]:
    given = [argument.replace("{}", str(place)) for argument in MISTAKES[mistake][0]]
    defaults = {"--pipeline": place / "pipeline", "--data": place / "clips", "--output": place / "out"}
    for option, value in defaults.items():
        if option not in given:
            given += [option, str(value)]
    return given


def _check_refusal(place: Path, mistake: str, code: object, stdout: str, stderr: str) -> None:
    assert code == 2, stderr
    assert stdout == ""
    assert stderr.count("\n") == 1
    assert stderr.startswith("finephys: ")
    for text in MISTAKES[mistake][1]:
        assert text.replace("{}", str(place)) in stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    place: Path, mistake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["jobs/generate.py", *_given(place, mistake)])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(ROOT / "jobs" / "generate.py"), run_name="__main__")
    _check_refusal(place, mistake, leaving.value.code, *capsys.readouterr())
    assert sorted(place.rglob("*")) == before


# The same from outside, for one mistake of each kind: found by tyro, by us, and in a file.
@pytest.mark.parametrize("mistake", ["unknown option", "unknown class", "truncated video"])
def test_a_mistake_is_one_line_in_a_process_of_its_own(place: Path, mistake: str) -> None:
    result = _generate(*_given(place, mistake))
    _check_refusal(place, mistake, result.returncode, result.stdout, result.stderr)


def test_help_shows_examples_and_loads_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "jobs/generate.py", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "--num-inference-steps" in result.stdout
    assert "Examples:" in result.stdout
    # Loading torch and diffusers is what would make --help slow; without them it takes a second.
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "diffusers", "transformers", "ray"}


@pytest.fixture(scope="module")
def two_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of one shipped clip, and of the same with its video cut short."""
    folder = tmp_path_factory.mktemp("clips")
    clip = min((clip for clip in read_clips(str(CLIPS)) if clip.split == "test"), key=lambda clip: clip.num_frames)
    corrupt = replace(clip, clip_id="corrupt", label_name="a corrupt one", video=clip.video[:3000])
    write_shard([clip, corrupt], folder / "a.parquet")
    return folder


def test_a_run_is_complete_repeatable_and_continued(
    quick_pipeline: Path,
    two_clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def generate(*more: str) -> str:
        given = ["--pipeline", quick_pipeline, "--data", two_clips, "--output", tmp_path, "--num-inference-steps", 2]
        given += ["--num-frames", 8]
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["jobs/generate.py", *map(str, given), "--threads", "1", *more])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(ROOT / "jobs" / "generate.py"), run_name="__main__")
        stdout, stderr = capsys.readouterr()
        assert leaving.value.code == 0, stderr
        return stdout

    assert f"open {tmp_path}/index.html" in generate("--report")

    # The corrupt clip is listed, the other one is whole.
    (failure,) = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert failure["clip_id"] == "corrupt"
    (folder,) = (tmp_path / "clips").iterdir()
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == ["generated.gif", "generated.mp4", "hops.gif", "sheet.png", "source.mp4"]
    generated, source = decode_video(first["generated.mp4"]), decode_video(first["source.mp4"])
    assert generated.frames_THWC.shape == source.frames_THWC.shape == (8, 64, 64, 3)
    assert generated.fps == pytest.approx(source.fps)
    (line,) = read_manifest(tmp_path).values()
    assert set(line["measures"]) == set(MEASURES)
    assert f"clips/{folder.name}/sheet.png" in (tmp_path / "index.html").read_text()

    # Run again: what is done stays untouched.
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "1 of 2 clips are done already" in generate()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times

    # A lost file: made again, with the same bytes.
    (folder / "generated.mp4").unlink()
    generate()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first

    # Another seed is another request.
    generate("--seed", "1", "--num-inference-steps", "1")
    assert (folder / "generated.mp4").read_bytes() != first["generated.mp4"]
