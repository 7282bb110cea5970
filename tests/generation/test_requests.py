"""Seeds, names and hashes follow from the request and from nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from finephys.generation.requests import GenerationRequest, noise_seed, pipeline_sha256

REQUEST = GenerationRequest(
    clip_id="backflip-7",
    sample=0,
    prompt="A gymnast jumps.",
    seed=0,
    num_frames=16,
    num_inference_steps=20,
    guidance_scale=2.0,
    pose_guidance_scale=1.0,
    reference="none",
    driving_sha256="aa",
    pipeline_sha256="bb",
)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"prompt": "Else."}, {"pipeline_sha256": "cc"}, {"num_inference_steps": 21}, {"sample": 1}],
)
def test_anything_that_changes_the_clip_changes_the_hash(change: dict[str, object]) -> None:
    assert replace(REQUEST, **change).sha256 != REQUEST.sha256  # type: ignore[arg-type]
    assert replace(REQUEST).sha256 == REQUEST.sha256


def test_seeds_differ_by_run_clip_and_sample_and_stay() -> None:
    seeds = {noise_seed(seed, clip, sample) for seed in (0, 1) for clip in ("a", "b", "1") for sample in (0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Clips that exist must come out again: this number may not change.
    assert noise_seed(0, "backflip-7", 0) == REQUEST.noise_seed == 906516903134288583


def test_folder_names_are_safe_and_distinct() -> None:
    names = [replace(REQUEST, clip_id=clip_id).folder_name for clip_id in ("../a", ".._a", "a/b", "a_b", "x" * 300)]
    assert len(set(names)) == len(names)
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in names)
    assert REQUEST.folder_name == "backflip-7-0"


def test_a_pipelines_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "weights"
    weights.write_bytes(b"1")
    first = pipeline_sha256(tmp_path)
    assert pipeline_sha256(tmp_path) == first
    weights.write_bytes(b"2")
    second = pipeline_sha256(tmp_path)
    weights.write_bytes(b"1")
    weights.rename(tmp_path / "weights")
    assert len({first, second, pipeline_sha256(tmp_path)}) == 3
