"""Record what a detector does on rendered clips: the errors with which the lifter is trained.

Path:    shards, pipeline/pose_estimator -> detector_errors.safetensors (finephys/pose/corruption.py)
Letters: M clips, T frames, J = 17 joints
Units:   shares of the long side of the true joints' box
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from finephys.evaluation.detections import detect_clips, read_split
from finephys.pose.corruption import ERRORS, back_and_forth

NUM_FRAMES = 32


def record_errors(pipeline: Path, data: str, output: Path, split: str = "train", num_clips: int = 300) -> None:
    """Write `output`: error (M,T,17,2) float16 and confidence (M,T,17) uint8 of clips spread over `split`.

    A detector errs less on the clips that it learnt from than on others, so record the test split of data of another
    seed; motion capture there is left out, because its motions are held out from the lifter.
    Each clip gives its first NUM_FRAMES frames; a shorter one goes back and forth. Raises as detect_clips does.
    """
    found = (clip for clip in read_split(data, split) if split == "train" or clip.subset != "other")
    clips = sorted(found, key=lambda clip: clip.clip_id)
    picked = np.linspace(0, len(clips) - 1, min(num_clips, len(clips))).round().astype(int)
    error, confidence = [], []
    for detection in detect_clips(pipeline, [clips[index] for index in picked], data):
        assert detection.clip.joints_px is not None
        truth_px = detection.clip.joints_px
        frame_T = back_and_forth(np.arange(NUM_FRAMES), len(truth_px))
        side_px = np.ptp(truth_px, axis=1).max(-1)[:, None, None]
        error.append(((detection.pose.joints_px - truth_px) / side_px)[frame_T])
        confidence.append(detection.pose.confidence[frame_T])
    arrays = {
        "error": np.stack(error).astype(np.float16),
        "confidence": np.round(255 * np.stack(confidence)).astype(np.uint8),
    }
    writing = output.with_name(f".{output.name}")
    save_file(arrays, writing)
    writing.replace(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Example: python -m finephys.evaluation.detector_errors --pipeline outputs/pose2d/pipeline "
        "--data clips-of-seed-1 --split test",
    )
    parser.add_argument("--pipeline", type=Path, default=ERRORS.parent / "pipeline", help="folder with pose_estimator")
    parser.add_argument("--data", default=str(ERRORS.parent / "clips"), help="folder or URL of shards")
    parser.add_argument("--split", default="train", help="split of the shards: train or test")
    parser.add_argument("--output", type=Path, default=ERRORS, help="the .safetensors file to write")
    options = parser.parse_args()
    record_errors(options.pipeline, options.data, options.output, options.split)
