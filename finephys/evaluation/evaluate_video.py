"""Compare ways to guide a video, as the paper's comparison does: which of them does what it was asked to do?

Path:    test clips -> detected (clean, corrupted) -> one video for each way -> re-detected -> figures, index.html
Letters: T frames of a clip, F generated frames, J = 17 joints
Units:   pixel; PCK in [0, 1]; angles in degrees

All ways share weights, prompts, noise, steps and, but for text alone, the picture of the clip's first frame. What is
judged is the true motion: generated frames are seen by the shipped detector and compared with the clip's ground truth,
beside the same measure of the real render. FinePhys (arXiv:2505.13437) compares FX-JUMP, FX-TURN and FX-SALTO; so here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from finephys.data.clips import Clip
from finephys.data.video import encode_video
from finephys.diffusion.motion import Motion, motion_of_pose
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.evaluation.detections import Detection, detect_split
from finephys.evaluation.distances import clip_similarity, frechet_distance, video_features
from finephys.evaluation.elements import NUM_FRAMES, ElementClassifier, sample_frames, train_classifier
from finephys.evaluation.figures import Figure, figures_table
from finephys.evaluation.pages import write_page
from finephys.evaluation.pose import pck
from finephys.evaluation.video import PCK_SHARE, background_flicker
from finephys.guidance.heatmaps import relative_depth
from finephys.physics.plausibility import plausibility
from finephys.pose.camera_estimation import estimate_camera_motion
from finephys.pose.corruption import corrupt_detections
from finephys.pose.estimator import Pose2D
from finephys.skeleton import BONES

SUBSETS = ("FX-JUMP", "FX-TURN", "FX-SALTO")
# Twice as many clips say more about ways that differ little than twice as many steps: of 6 steps, PCK is 0.99 of that
# of 25 (`jobs/benchmark.py generate`).
CLIPS_PER_SUBSET = 16
NUM_INFERENCE_STEPS = 6
NUM_SHOWN = 6
# The middle ways depend on what was detected, and are made of clean and of corrupted detections.
ESTIMATED = {"2d": "detected 2D pose, no depth", "s_dd": "S_dd, lifted", "ours": "S_dd + S_pp, fused"}
ROWS = {
    "text": "text only",
    "first_frame": "first frame and its pose, held",
    **{f"{way}_{state}": f"{ESTIMATED[way]} ({state})" for state in ("clean", "corrupted") for way in ESTIMATED},
    "truth": "ground truth",
}
# How far in front of a made-up camera joints are put that are given in pixels.
_DISTANCE_M = 4.0
_BOOTSTRAPS = 2000

FLOATS = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What is drawn: joints_px (T,17,2) in pixels of the clip, depth_m (T,17) relative to the root."""

    joints_px: FLOATS
    depth_m: FLOATS


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A video (F,H,W,3), what the detector found in it, and how that compares with the true motion.

    pck: at 0.1 of the body's box.  limb_error_degrees: mean angle between found and true limbs.  flicker: of the
    background, grey levels.  jitter_m_s3, bone_drift_mm: of the motion lifted from it.
    """

    video_FHWC: NDArray[np.uint8]
    joints_px: FLOATS
    pck: float
    limb_error_degrees: float
    flicker: float
    jitter_m_s3: float
    bone_drift_mm: float


MEASURES = ("pck", "limb_error_degrees", "flicker", "jitter_m_s3", "bone_drift_mm")


def evaluate(pipeline: Path, data: str, output: Path, networks: Path | None = None) -> list[Figure]:
    """All figures of the generator, and output/index.html with the videos side by side.

    networks: folder with videomae/ and clip/ in transformers' layout, for Fréchet distance and CLIP similarity.
    Raises as detections.detect_split does, and OSError where `networks` holds neither.
    """
    model = FinePhysPipeline.from_pretrained(pipeline)
    model.set_progress_bar_config(disable=True)
    tested = [found for found in detect_split(pipeline, data) if found.clip.subset in SUBSETS]
    if not tested:
        raise ValueError(f"data {data} has no test clip of {', '.join(SUBSETS)}")
    by_id = {found.clip.clip_id: found for found in tested}
    chosen = [by_id[clip.clip_id] for clip in choose([found.clip for found in tested], CLIPS_PER_SUBSET)]
    classifier = _classifier(pipeline, data)

    seen: dict[str, list[Seen]] = {name: [] for name in ("real", *ROWS)}
    with tqdm(total=len(chosen) * len(ROWS), unit="video") as progress:
        for number, found in enumerate(chosen):
            index = _frame_index(found)
            real = found.frames_THWC[index]
            seen["real"].append(see(model, found, real, index))
            for row, guide in guides(model, found, seed=number).items():
                video = generate(model, found, row, guide, seed=number)
                seen[row].append(see(model, found, video, index))
                progress.update()
    figures = [*pose_figures(seen), *element_figures(classifier, tested, chosen, seen)]
    if networks is not None:
        figures += _network_figures(networks, chosen, seen)
    videos = _write_videos(output, chosen, seen)
    write_page(
        output,
        title="Guided video",
        table=rows_table(seen) + "\n\n" + figures_table(figures),
        notes=(
            f"{len(chosen)} held-out clips of {', '.join(SUBSETS)}, {NUM_INFERENCE_STEPS} steps, one seed a clip. "
            "PCK is of the joints that the shipped detector finds, against the true motion; the first row is the most "
            "that this detector gives. Brackets are 95 % bootstrap intervals over clips.",
            "Jitter and bone drift are of the motion lifted from the video, so they carry the lifter's own errors.",
            "Fréchet element distance is a proxy: of the element classifier's features, which see poses and no looks."
            + ("" if networks is not None else " No I3D or VideoMAE and no CLIP were given (--networks)."),
        ),
        videos=videos,
    )
    return figures


def choose(clips: Sequence[Clip], per_subset: int) -> list[Clip]:
    """Clips of each subset, spread evenly over its clips in the order of their ids."""
    chosen = []
    for subset in SUBSETS:
        of_subset = sorted((clip for clip in clips if clip.subset == subset), key=lambda clip: clip.clip_id)
        picked = np.linspace(0, len(of_subset) - 1, min(per_subset, len(of_subset))).round().astype(int)
        chosen += [of_subset[index] for index in picked]
    return chosen


# --- ways to guide


def guides(model: FinePhysPipeline, found: Detection, seed: int) -> dict[str, Guide]:
    """What each of ROWS draws for one clip. The corrupted detection is of its own seed, the same for its three rows."""
    truth = true_guide(found)
    size = (found.clip.height, found.clip.width)
    corrupted_1, confidence_1 = corrupt_detections(
        np.random.default_rng([seed, 1]), found.pose.joints_px[None].astype(np.float64), np.array([size], np.float64)
    )
    corrupted = Pose2D(corrupted_1[0], np.minimum(confidence_1[0], found.pose.confidence))
    held = Guide(
        joints_px=np.repeat(truth.joints_px[:1], len(truth.joints_px), 0),
        depth_m=np.repeat(truth.depth_m[:1], len(truth.depth_m), 0),
    )
    drawn = {"text": truth, "first_frame": held}
    for state, pose in (("clean", found.pose), ("corrupted", corrupted)):
        assert found.clip.intrinsics is not None
        middle = found.clip.intrinsics[found.clip.num_frames // 2]
        camera = estimate_camera_motion(found.frames_THWC, pose, middle, found.clip.fps)
        motion = motion_of_pose(model.lifter, model.phys_net, pose, size, found.clip.fps, middle, camera)
        assert motion.joints_dd is not None
        drawn[f"2d_{state}"] = Guide(joints_px=pose.joints_px, depth_m=np.zeros(pose.joints_px.shape[:2]))
        drawn[f"s_dd_{state}"] = _drawn(motion.joints_dd, motion)
        drawn[f"ours_{state}"] = _drawn(motion.guiding_TJ3, motion)
    drawn["truth"] = truth
    return drawn


def generate(
    model: FinePhysPipeline,
    found: Detection,
    row: str,
    guide: Guide,
    seed: int,
    num_inference_steps: int | None = None,
) -> NDArray[np.uint8]:
    """The video (F,H,W,3) of one way to guide one clip, with the clip's prompt; NUM_INFERENCE_STEPS if not given."""
    # The same pixels and depths, whichever camera they come from.
    size = (found.clip.height, found.clip.width)
    focal_px = float(max(size))
    intrinsics = np.array([[focal_px, 0, size[1] / 2], [0, focal_px, size[0] / 2], [0, 0, 1]])
    depth_m = _DISTANCE_M + guide.depth_m
    rays = (guide.joints_px - np.array([size[1] / 2, size[0] / 2])) / focal_px
    joints_cam_m = np.concatenate([rays * depth_m[..., None], depth_m[..., None]], -1)
    has_picture = row != "text"
    output = model(
        found.clip.prompt,
        joints_cam_m=joints_cam_m.astype(np.float32),
        intrinsics=intrinsics,
        is_camera_static=bool(found.clip.is_static),
        height=size[0],
        width=size[1],
        reference_image=found.frames_THWC[0] if has_picture else None,
        reference_joints_px=found.pose.joints_px[0] if has_picture else None,
        num_frames=NUM_FRAMES,
        num_inference_steps=num_inference_steps or NUM_INFERENCE_STEPS,
        pose_guidance_scale=1.0 if has_picture else 0.0,
        generator=torch.Generator().manual_seed(seed),
    )
    video: NDArray[np.uint8] = output.frames[0]
    return video


def true_guide(found: Detection) -> Guide:
    """The clip's own joints and depths."""
    assert found.clip.joints_px is not None
    assert found.clip.joints_cam_m is not None
    depth = relative_depth(torch.from_numpy(found.clip.joints_cam_m)).numpy()
    return Guide(joints_px=found.clip.joints_px.astype(np.float64), depth_m=depth.astype(np.float64))


def _drawn(joints_cam_m: FLOATS, motion: Motion) -> Guide:
    joints = np.asarray(joints_cam_m, np.float32)
    depth = relative_depth(torch.from_numpy(motion.seen_TJ3(joints))).numpy()
    return Guide(joints_px=motion.seen_px(joints).astype(np.float64), depth_m=depth.astype(np.float64))


# --- what came of it


def see(model: FinePhysPipeline, found: Detection, video_FHWC: NDArray[np.uint8], index: NDArray[np.int64]) -> Seen:
    """Detect and lift the motion in a video whose frames show frames `index` of the clip, and measure it."""
    clip = found.clip
    assert clip.joints_px is not None
    truth_px = clip.joints_px[index].astype(np.float64)
    pose = model.pose_estimator.estimate(video_FHWC)
    fps = clip.fps * (len(index) - 1) / (index[-1] - index[0])
    assert clip.intrinsics is not None
    # The middle of the video shows the middle of the clip. How its camera moves is read off its own background.
    intrinsics = clip.intrinsics[clip.num_frames // 2]
    camera = estimate_camera_motion(video_FHWC, pose, intrinsics, fps)
    lifted = model.lifter.lift(camera.stabilise(pose, intrinsics), intrinsics, fps)
    up = tuple(float(-value) for value in camera.gravity(lifted, fps))
    physical = plausibility(lifted.joints_cam_m, fps, up=(up[0], up[1], up[2]))
    flicker = background_flicker(video_FHWC, truth_px)
    return Seen(
        video_FHWC=video_FHWC,
        joints_px=pose.joints_px,
        pck=pck(pose.joints_px, truth_px, PCK_SHARE),
        limb_error_degrees=limb_error_degrees(pose.joints_px, truth_px),
        flicker=float("nan") if flicker is None else flicker,
        jitter_m_s3=float("nan") if physical.jitter_m_s3 is None else physical.jitter_m_s3,
        bone_drift_mm=physical.bone_drift_mm,
    )


def limb_error_degrees(joints_px: FLOATS, truth_px: FLOATS) -> float:
    """Mean angle in the picture between found and true bones, joints (F,17,2); bones seen end on (< 2 px) left out."""
    parents, children = (list(side) for side in zip(*BONES, strict=True))
    found, true = joints_px[:, children] - joints_px[:, parents], truth_px[:, children] - truth_px[:, parents]
    cross = found[..., 0] * true[..., 1] - found[..., 1] * true[..., 0]
    angle = np.degrees(np.abs(np.arctan2(cross, (found * true).sum(-1))))
    return float(angle[np.linalg.norm(true, axis=-1) >= 2].mean())


def pose_figures(seen: Mapping[str, Sequence[Seen]]) -> list[Figure]:
    """The issue of the comparison: our row against the real render, 2D guidance, S_dd and the ceiling."""
    mean = {row: float(np.mean([one.pck for one in videos])) for row, videos in seen.items()}
    gap = {way: mean["truth"] - mean[f"{way}_corrupted"] for way in ESTIMATED}
    return [
        Figure(name="pck_ours_over_real_clean", value=mean["ours_clean"] / mean["real"], at_least=0.92),
        Figure(name="pck_ours_over_real_corrupted", value=mean["ours_corrupted"] / mean["real"], at_least=0.87),
        Figure(
            name="pck_points_ours_over_2d_corrupted",
            value=100 * (mean["ours_corrupted"] - mean["2d_corrupted"]),
            at_least=5.0,
        ),
        Figure(name="pck_points_to_ceiling_ours_minus_s_dd", value=100 * (gap["ours"] - gap["s_dd"]), at_most=0.0),
        *(Figure(name=f"pck_{row}", value=value) for row, value in mean.items()),
        *(
            Figure(name=f"{measure}_{row}", value=float(np.nanmean([getattr(one, measure) for one in seen[row]])))
            for measure in MEASURES[1:]
            for row in ("real", "ours_clean")
        ),
    ]


def element_figures(
    classifier: ElementClassifier,
    tested: Sequence[Detection],
    chosen: Sequence[Detection],
    seen: Mapping[str, Sequence[Seen]],
) -> list[Figure]:
    """How often a classifier of real renders names the element of a generated clip, beside the same of real ones."""
    labels = np.array([found.clip.label for found in chosen])

    def accuracy(row: str) -> float:
        return float((classifier.classify([one.joints_px for one in seen[row]]) == labels).mean())

    all_real = classifier.classify([sample_frames(found.pose.joints_px) for found in tested])
    real = accuracy("real")
    features = {row: classifier.features([one.joints_px for one in seen[row]]) for row in ("real", *ROWS)}
    return [
        Figure(
            name="element_accuracy_ours_over_real",
            value=accuracy("ours_clean") / real if real else float("nan"),
            at_least=0.80,
        ),
        Figure(name="element_accuracy_real", value=real),
        Figure(
            name="element_accuracy_all_test_renders",
            value=float((all_real == [found.clip.label for found in tested]).mean()),
        ),
        *(Figure(name=f"element_accuracy_{row}", value=accuracy(row)) for row in ROWS),
        *(
            Figure(name=f"frechet_element_distance_{row}", value=frechet_distance(features[row], features["real"]))
            for row in ROWS
        ),
    ]


def rows_table(seen: Mapping[str, Sequence[Seen]]) -> str:
    """A line a row: each measure's mean over clips, and the interval of its mean by bootstrap over clips."""
    heads = ("PCK@0.1", "limbs (deg)", "flicker", "jitter (m/s3)", "bones (mm)")
    lines = [f"{'':<42}" + "".join(f"{head:<24}" for head in heads)]
    for row, videos in seen.items():
        cells = []
        for measure in MEASURES:
            values = np.array([getattr(one, measure) for one in videos])
            low, high = bootstrap_interval(values)
            cells.append(f"{np.nanmean(values):.3g} [{low:.3g}, {high:.3g}]")
        lines.append(f"{ROWS.get(row, 'the render itself'):<42}" + "".join(f"{cell:<24}" for cell in cells))
    return "\n".join(lines)


def bootstrap_interval(values: FLOATS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `values`, by drawing them anew; those that are not numbers are left out."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).choice(known, (_BOOTSTRAPS, len(known))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


# --- classifier, networks, page


def _classifier(pipeline: Path, data: str) -> ElementClassifier:
    """Learned on what the detector finds in the real renders of the train split."""
    learned = [found for found in detect_split(pipeline, data, "train") if found.clip.subset in SUBSETS]
    if not learned:
        raise ValueError(f"data {data} has no train clip of {', '.join(SUBSETS)} to learn the elements from")
    return train_classifier(
        [sample_frames(found.pose.joints_px) for found in learned], [found.clip.label for found in learned]
    )


def _network_figures(networks: Path, chosen: Sequence[Detection], seen: Mapping[str, Sequence[Seen]]) -> list[Figure]:
    if not (networks / "videomae").is_dir() and not (networks / "clip").is_dir():
        raise FileNotFoundError(f"networks {networks} has neither videomae nor clip")
    figures = []
    if (networks / "videomae").is_dir():
        features = {
            row: video_features(networks / "videomae", [one.video_FHWC for one in videos])
            for row, videos in seen.items()
        }
        figures += [
            Figure(name=f"frechet_video_distance_{row}", value=frechet_distance(features[row], features["real"]))
            for row in ROWS
        ]
    if (networks / "clip").is_dir():
        prompts = [found.clip.prompt for found in chosen]
        figures += [
            Figure(
                name=f"clip_similarity_{row}",
                value=float(clip_similarity(networks / "clip", [one.video_FHWC for one in videos], prompts).mean()),
            )
            for row, videos in seen.items()
        ]
    return figures


def _write_videos(
    output: Path, chosen: Sequence[Detection], seen: Mapping[str, Sequence[Seen]]
) -> list[tuple[str, str]]:
    """For some clips one video of all rows side by side."""
    output.mkdir(parents=True, exist_ok=True)
    videos = []
    for index in np.linspace(0, len(chosen) - 1, min(NUM_SHOWN, len(chosen))).round().astype(int):
        found = chosen[index]
        rows = [_titled(row, seen[row][index].video_FHWC) for row in seen]
        rows += [np.zeros_like(rows[0])] * (-len(rows) % 5)
        grid = np.concatenate([np.concatenate(rows[start : start + 5], 2) for start in range(0, len(rows), 5)], 1)
        name = f"comparison-{index:02d}.mp4"
        (output / name).write_bytes(encode_video(np.ascontiguousarray(grid), 8.0))
        videos.append((f"{found.clip.label_name}: {found.clip.prompt}", name))
    return videos


def _titled(title: str, video_FHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    titled = np.pad(video_FHWC, ((0, 0), (16, 0), (0, 0), (0, 0)))
    for frame in titled:
        cv2.putText(frame, title, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return titled


def _frame_index(found: Detection) -> NDArray[np.int64]:
    return np.linspace(0, len(found.frames_THWC) - 1, NUM_FRAMES).round().astype(np.int64)
