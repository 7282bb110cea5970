"""RTMPose: its weights, its decoding, whole clips, official checkpoints, and one stage of training."""

import copy
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from finephys.data.video import decode_video
from finephys.evaluation.detections import read_split
from finephys.pose.crops import Boxes, boxes_from_motion, boxes_from_pose, cut_crop
from finephys.pose.estimator import Pose2D
from finephys.pose.mmpose_import import official_config
from finephys.pose.rtmpose import RTMPose, RTMPoseConfig, decode_simcc, frames_around, stack_frames
from finephys.pose.rtmpose_training import Pose2DTraining, Pose2DTrainingConfig, build, collate, simcc_target
from finephys.skeleton import BONES, MIRROR, NUM_JOINTS

ASSETS = Path("finephys/assets")
OFFICIAL_NAME = "rtmpose-t_8xb256-420e_coco-256x192"
# A joint's colour depends on the joint only through its mirror pair, so that a flipped image stays a true one.
PAIR = np.minimum(np.arange(NUM_JOINTS), MIRROR)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that threads wait for each other, badly so on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def estimator() -> RTMPose:
    torch.manual_seed(0)
    model = RTMPose(**asdict(RTMPoseConfig()))
    model.eval()
    return model


@pytest.fixture(scope="module")
def official() -> RTMPose:
    """RTMPose-t with random weights, built as from_official builds it."""
    torch.manual_seed(0)
    return RTMPose(
        keypoint_layout="coco",
        crop_height=256,
        crop_width=192,
        num_stages=4,
        deepen_factor=0.167,
        widen_factor=0.375,
        head_dim=256,
        head_attention_dim=128,
        head_kernel_size=7,
        simcc_split_ratio=2.0,
        simcc_sigma_bins=(4.9, 5.66),
        norm_eps=1e-5,
    )


def noise_clip(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def stick_clip(num_frames: int = 8, seed: int = 0) -> dict[str, object]:
    """A decoded clip as the stage's rows are: a coloured stick figure on a plain wall."""
    rng = np.random.default_rng(seed)
    x = [0, -8, -8, -8, 8, 8, 8, 0, 0, 0, 0, 10, 18, 22, -10, -18, -22]
    y = [0, 0, 18, 36, 0, 18, 36, -12, -24, -30, -38, -24, -12, 0, -24, -12, 0]
    standing = np.stack([x, y], -1).astype(float)
    frames = np.full((num_frames, 128, 128, 3), rng.integers(60, 200, 3), np.uint8)
    joints = standing + rng.normal(0, 3, (num_frames, NUM_JOINTS, 2)) + 64
    for frame, places in zip(frames, joints):
        for parent, child in BONES:
            ends = [tuple(int(v) for v in (places[joint] * 16 - 8).round()) for joint in (parent, child)]
            colour = (int(255 * child / 17), 20, int(255 - 255 * child / 17))
            cv2.line(frame, ends[0], ends[1], colour, 4, cv2.LINE_AA, shift=4)
    confidence = np.ones((num_frames, NUM_JOINTS), np.float32)
    return {"clip_id": f"stick{seed}", "frames": frames, "joints_px": joints, "joints_confidence": confidence}


def test_the_shipped_size(estimator: RTMPose) -> None:
    assert sum(parameter.numel() for parameter in estimator.parameters()) <= 2_000_000


def test_saved_and_loaded_it_is_the_same(estimator: RTMPose, tmp_path: Path) -> None:
    estimator.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = RTMPose.from_pretrained(tmp_path)
    frames = noise_clip(3, 128, 128)
    np.testing.assert_allclose(loaded.estimate(frames).joints_px, estimator.estimate(frames).joints_px, atol=1e-2)


def test_fused_it_finds_the_same() -> None:
    torch.manual_seed(1)
    plain = RTMPose(**asdict(RTMPoseConfig())).eval()
    for layer in plain.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    frames = noise_clip(3, 128, 128)
    expected = plain.estimate(frames)
    fused = plain.fuse()
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.backbone.modules())
    found = fused.estimate(frames)
    np.testing.assert_allclose(found.joints_px, expected.joints_px, atol=2e-2)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-3)


def test_decoding_finds_a_target_between_bins_and_is_sure_of_it() -> None:
    config = RTMPoseConfig()
    place = torch.tensor([[10.3, 60.0, 127.1]])
    target = simcc_target(place, torch.ones(1, 3), 256, config, axis=0)
    found, confidence = decode_simcc(target, target.flip(1), config.simcc_split_ratio)
    np.testing.assert_allclose(found[0, :2, 0], place[0, :2], atol=0.05)
    np.testing.assert_allclose(found[0, 1:, 1], place[0].flip(0)[1:], atol=0.05)
    assert (confidence > 0.9).all()
    assert (confidence <= 1).all()
    _, unsure = decode_simcc(torch.zeros(1, 1, 256), torch.zeros(1, 1, 256), config.simcc_split_ratio)
    assert unsure.item() < 0.02


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 128, 128), (5, 97, 61), (4, 61, 203), (3, 600, 338)])
def test_any_length_and_size(estimator: RTMPose, num_frames: int, height: int, width: int) -> None:
    pose = estimator.estimate(noise_clip(num_frames, height, width))
    assert pose.joints_px.shape == (num_frames, 17, 2)
    assert pose.joints_px.dtype == pose.confidence.dtype == np.float32
    assert np.isfinite(pose.joints_px).all()
    assert (pose.confidence >= 0).all()
    assert (pose.confidence <= 1).all()


def test_how_frames_are_batched_does_not_matter(estimator: RTMPose, monkeypatch: pytest.MonkeyPatch) -> None:
    # In float64: an untrained network has peaks that are nearly level, and which one wins moves the next box.
    exact = copy.deepcopy(estimator).double()
    frames = noise_clip(9, 128, 128)
    whole = exact.estimate(frames)
    monkeypatch.setattr("finephys.pose.rtmpose.CROPS_PER_FORWARD", 4)
    np.testing.assert_allclose(exact.estimate(frames).joints_px, whole.joints_px, atol=1e-2)


def test_a_box_that_all_frames_share_is_cut_once_a_frame_and_shows_the_same(
    estimator: RTMPose, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float64: an untrained network has peaks that are nearly level.
    exact = copy.deepcopy(estimator).double()
    frames_THWC = noise_clip(9, 64, 64)
    one_box = boxes_from_motion(frames_THWC, exact.crop_size)
    # A box that is turned by nothing that can be seen.
    angle_T = one_box.angle.copy()
    angle_T[-1] = 1e-9
    cuts: list[int] = []

    def counted(frame_HWC: np.ndarray, to_frame: np.ndarray, crop_size: tuple[int, int]) -> np.ndarray:
        cuts.append(len(frame_HWC))
        return cut_crop(frame_HWC, to_frame, crop_size)

    monkeypatch.setattr("finephys.pose.rtmpose.cut_crop", counted)
    shared = exact._estimate_in_boxes(frames_THWC, one_box)
    num_shared = len(cuts)
    apart = exact._estimate_in_boxes(frames_THWC, replace(one_box, angle=angle_T))
    # The clip's first and last frame stand for those beyond it, in the same box.
    assert (num_shared, len(cuts) - num_shared) == (9, 3 * 9 - 2)
    np.testing.assert_allclose(shared.joints_px[:-1], apart.joints_px[:-1], atol=1e-2)
    np.testing.assert_allclose(shared.confidence[:-1], apart.confidence[:-1], atol=1e-4)


def test_with_a_flip_test_the_mirror_shows_the_same_body_with_its_sides_swapped() -> None:
    estimator = RTMPose.from_pretrained(ASSETS / "pipeline", subfolder="pose_estimator", torch_dtype=torch.float32)
    clip = next(iter(read_split(str(ASSETS / "clips"), "test")))
    frames_THWC = decode_video(clip.video).frames_THWC[:4]
    width = frames_THWC.shape[2]
    boxes = boxes_from_motion(frames_THWC, estimator.crop_size)
    boxes = boxes_from_pose(Pose2D(clip.joints_px[:4], clip.joints_confidence[:4]), boxes, estimator.crop_size)
    mirrored_boxes = Boxes(np.array([width, 0]) + boxes.centre_px * [-1, 1], boxes.height_px, -boxes.angle)
    mirrored_THWC = np.ascontiguousarray(frames_THWC[:, :, ::-1])

    def distance_px(flip_test: bool) -> float:
        found = estimator._estimate_in_boxes(frames_THWC, boxes, flip_test)
        mirrored = estimator._estimate_in_boxes(mirrored_THWC, mirrored_boxes, flip_test)
        expected_px = np.array([width, 0]) + mirrored.joints_px[:, list(MIRROR)] * [-1, 1]
        return float(np.abs(found.joints_px - expected_px).max())

    assert distance_px(True) < 1e-3
    assert distance_px(False) > 0.3


def test_a_black_clip_shows_nobody(estimator: RTMPose) -> None:
    pose = estimator.estimate(np.zeros((3, 128, 128, 3), np.uint8))
    assert (pose.confidence == 0).all()
    assert np.isfinite(pose.joints_px).all()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 128, 128), np.uint8),
        np.zeros((0, 128, 128, 3), np.uint8),
        np.zeros((4, 128, 128, 4), np.uint8),
        np.zeros((4, 128, 128, 3), np.uint16),
        np.zeros((4, 8, 128, 3), np.uint8),
    ],
    ids=["grey", "empty", "alpha", "16 bit", "tiny"],
)
def test_other_frames_are_refused_in_one_line(estimator: RTMPose, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"wanted \(T, H, W, 3\) uint8") as caught:
        estimator.estimate(frames)
    assert "\n" not in str(caught.value)


def test_a_layout_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="keypoint_layout is 'mpii'"):
        RTMPose(**asdict(replace(RTMPoseConfig(), keypoint_layout="mpii")))


def test_an_official_checkpoint_loads(official: RTMPose, tmp_path: Path) -> None:
    """With what mmengine's runner writes around the weights, and as COCO keypoints turned into H36M joints."""
    path = tmp_path / "rtmpose-t.pth"
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    meta = {"epoch": 420, "loss": np.float64(0.1), "history": history, "array": np.arange(3.0)}
    torch.save({"meta": meta, "state_dict": OrderedDict(official.state_dict())}, path)
    loaded = RTMPose.from_official(OFFICIAL_NAME, path)
    for name, weight in official.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight)
    assert loaded.estimate(noise_clip(2, 128, 128)).joints_px.shape == (2, NUM_JOINTS, 2)


def test_it_computes_what_mmpose_computes(official: RTMPose) -> None:
    """The same crop through mmpose's own TopdownPoseEstimator with the same weights, and its own decoder."""
    from mmengine.registry import DefaultScope
    from mmpose.registry import MODELS
    from mmpose.structures import PoseDataSample

    model_config = official_config(OFFICIAL_NAME).model
    model_config.backbone.pop("_scope_")
    model_config.backbone.pop("init_cfg")
    model_config.backbone.norm_cfg = {"type": "BN"}
    with DefaultScope.overwrite_default_scope("mmpose"):
        theirs = MODELS.build(model_config)
    theirs.load_state_dict(official.state_dict(), strict=True)
    theirs.eval()
    official.eval()
    crops_NCHW = torch.from_numpy(noise_clip(2, 256, 192)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        ours_x, ours_y = official(crops_NCHW)
        bgr_as_loaded = {"inputs": list(crops_NCHW.flip(1)), "data_samples": [PoseDataSample(), PoseDataSample()]}
        their_x, their_y = theirs(**theirs.data_preprocessor(bgr_as_loaded), mode="tensor")
    torch.testing.assert_close(ours_x, their_x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours_y, their_y, atol=1e-4, rtol=1e-4)


def test_decoding_agrees_with_mmposes_codec() -> None:
    from mmpose.registry import KEYPOINT_CODECS

    codec = KEYPOINT_CODECS.build(official_config(OFFICIAL_NAME).codec)
    keypoints = np.random.default_rng(0).uniform(20, 170, (1, 17, 2))
    labels = codec.encode(keypoints)
    x, y = labels["keypoint_x_labels"], labels["keypoint_y_labels"]
    theirs, _ = codec.decode(x[0], y[0])
    ours, _ = decode_simcc(torch.from_numpy(x), torch.from_numpy(y), 2.0)
    np.testing.assert_allclose(ours.numpy() - 0.5, theirs, atol=0.05)


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("ran",))


def test_checkpoints_that_do_not_fit_are_refused(official: RTMPose, tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    weights = dict(official.state_dict())
    torch.save({"state_dict": {"extra": torch.zeros(1), **weights}}, path)
    with pytest.raises(ValueError, match=r"1 unexpected \['extra'\]"):
        RTMPose.from_official(OFFICIAL_NAME, path)
    weights.pop("head.cls_x.weight")
    torch.save({"state_dict": weights}, path)
    with pytest.raises(ValueError, match=r"1 missing weights \['head.cls_x.weight'\]"):
        RTMPose.from_official(OFFICIAL_NAME, path)
    with pytest.raises(ValueError, match="wanted COCO's 17"):
        RTMPose.from_official("rtmpose-m_8xb64-210e_crowdpose-256x192", path)
    with pytest.raises(ValueError, match="mmpose ships rtmpose"):
        RTMPose.from_official("rtmpose-xxl", path)
    with pytest.raises(FileNotFoundError):
        RTMPose.from_official(OFFICIAL_NAME, tmp_path / "none.pth")


def test_a_checkpoint_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "payload.pth"
    torch.save({"state_dict": {}, "meta": Payload()}, path)
    with pytest.raises(ValueError, match="not a checkpoint of plain weights"):
        RTMPose.from_official(OFFICIAL_NAME, path)
    assert "ran" not in capsys.readouterr().out


def test_transformers_and_diffusers_still_work_after_mmpose() -> None:
    """In a fresh interpreter: their checks look for torchvision and fail on a stand-in."""
    program = (
        "import sys\n"
        "from finephys.pose.mmpose_import import import_mmpose_models\n"
        "import_mmpose_models()\n"
        "assert not {'mmdet', 'torchvision', 'xtcocotools'} & set(sys.modules), sys.modules.keys()\n"
        "from transformers.utils import is_torchvision_available\n"
        "assert not is_torchvision_available()\n"
        "from transformers import CLIPTextConfig, CLIPTextModel\n"
        "from diffusers import AutoencoderKL, UNetMotionModel\n"
        "CLIPTextModel(CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,\n"
        "                             num_attention_heads=1))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_augmented_joints_stay_on_their_pixels(flip_probability: float) -> None:
    """A dot of its own colour at each joint, turned, scaled, shifted, flipped, is found again."""
    places = np.stack(np.meshgrid(np.linspace(80, 176, 5), np.linspace(80, 176, 4)), -1).reshape(-1, 2)[:NUM_JOINTS]
    frame = np.zeros((256, 256, 3), np.uint8)
    for joint, (x, y) in enumerate(places):
        blue = 250 if joint <= MIRROR[joint] else 150
        colour = (int(100 + 9 * PAIR[joint]), 250, blue)
        cv2.circle(frame, (int(x * 16 - 8), int(y * 16 - 8)), 4 * 16, colour, -1, shift=4)
    row = {"frames": frame[None], "joints_px": places[None], "joints_confidence": np.ones((1, NUM_JOINTS))}
    config = replace(
        Pose2DTrainingConfig(),
        crops_per_clip=8,
        filmed_probability=0.0,
        flip_probability=flip_probability,
        colour_probability=0.0,
        grey_probability=0.0,
        contrast_deviation=0.0,
        brightness_deviation=0.0,
        blur_probability=0.0,
        noise_probability=0.0,
        cutout_probability=0.0,
        nobody_probability=0.0,
    )
    batch = collate([row], np.random.default_rng(0), config)
    num_checked = 0
    for crop, joints, inside in zip(batch["crops_NFHWC"][:, 1].numpy(), batch["joints_px"].numpy(), batch["is_inside"]):
        for joint, (x, y) in enumerate(joints):
            if not inside[joint] or min(x, y) < 3 or max(x, y) > 125:
                continue
            colour = crop[int(y), int(x)].astype(int)
            # A flipped left joint lies on what was drawn for the right one.
            drawn = MIRROR[joint] if flip_probability else joint
            assert abs(colour[0] - (100 + 9 * PAIR[joint])) < 9
            assert abs(colour[2] - (250 if drawn <= MIRROR[drawn] else 150)) < 25
            num_checked += 1
    assert num_checked > 60


def test_targets_outside_the_crop_are_even() -> None:
    target = simcc_target(torch.tensor([[30.0, 30.0]]), torch.tensor([[1.0, 0.0]]), 256, RTMPoseConfig(), axis=0)
    assert target[0, 0].argmax() in (59, 60)
    assert (target[0, 1] == 0).all()


def test_the_loss_is_zero_at_the_target_and_only_there(estimator: RTMPose) -> None:
    batch = collate([stick_clip()], np.random.default_rng(0), replace(Pose2DTrainingConfig(), crops_per_clip=4))
    sides = [
        simcc_target(batch["joints_px"][..., axis], batch["is_inside"], 256, estimator.config, axis) for axis in (0, 1)
    ]

    class OracleHead(torch.nn.Module):
        """Logits that are the targets, moved along x by `shift` bins, with mmpose's loss."""

        loss_module = estimator.head.loss_module

        def __init__(self, shift: int) -> None:
            super().__init__()
            self.shift = shift

        def final_layer(self, _: object) -> torch.Tensor:
            return torch.zeros(4, NUM_JOINTS, 8, 8)

        def forward(self, _: object) -> tuple[torch.Tensor, torch.Tensor]:
            return sides[0].roll(self.shift, -1), sides[1]

    class Oracle(torch.nn.Module):
        config, crop_size = estimator.config, estimator.crop_size

        def __init__(self, shift: int) -> None:
            super().__init__()
            self.head = OracleHead(shift)

        def features(self, _: torch.Tensor) -> list[None]:
            return [None]

    exact = Pose2DTraining(Oracle(0))(batch)  # type: ignore[arg-type]
    assert exact["simcc_loss"].item() == pytest.approx(0, abs=1e-5)
    # Nothing is known from an even map: the logarithm of the 64 cells, for joints inside, as they are weighted.
    inside_weight = (batch["weight"] * batch["is_inside"]).mean()
    assert exact["cell_loss"].item() == pytest.approx(np.log(64) * inside_weight.item(), rel=1e-4)
    assert exact["error_px"].item() < 1
    assert Pose2DTraining(Oracle(4))(batch)["simcc_loss"].item() > 0.05  # type: ignore[arg-type]


def test_a_few_steps_learn_a_batch_and_export_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(RTMPoseConfig(), widen_factor=0.125, head_dim=64, head_attention_dim=32)
    module = build(config, None)
    batch = collate([stick_clip()], np.random.default_rng(0), replace(Pose2DTrainingConfig(), crops_per_clip=4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(30):
        terms = module(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.6 * losses[0]
    module.export(tmp_path)
    again = build(RTMPoseConfig(), tmp_path)
    assert again.pose_estimator.config.widen_factor == 0.125
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)


def test_a_network_of_single_frames_goes_on_with_three(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(RTMPoseConfig(), widen_factor=0.125, head_dim=64, head_attention_dim=32, frames_per_crop=1)
    one = build(config, None).eval()
    one.export(tmp_path)
    three = build(RTMPoseConfig(), tmp_path).pose_estimator.eval()
    crops_NFHWC = torch.randint(0, 256, (2, 3, 128, 128, 3), dtype=torch.uint8)
    expected = one.pose_estimator(stack_frames(crops_NFHWC[:, 1:2]))
    for logits, wanted in zip(three(stack_frames(crops_NFHWC)), expected):
        torch.testing.assert_close(logits, wanted)
    # What the other frames show gets in as soon as their weights move.
    three(stack_frames(crops_NFHWC))[0].square().sum().backward()
    stem = three.backbone.stem[0].conv
    assert stem.weight.grad[:, :3].abs().max() > 0


def test_frames_around_a_frame_end_with_the_clip() -> None:
    assert frames_around(0, 9, 3) == [0, 0, 1]
    assert frames_around(8, 9, 3) == [7, 8, 8]
    assert frames_around(4, 9, 3, stride=2) == [2, 4, 6]
    assert frames_around(0, 1, 3) == [0, 0, 0]


def test_collate_repeats_itself_from_the_same_seed() -> None:
    config = replace(Pose2DTrainingConfig(), crops_per_clip=2)
    rows = [stick_clip(seed=seed) for seed in range(3)]
    first, second = (collate(rows, np.random.default_rng(7), config) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["crops_NFHWC"].shape == (6, 3, 128, 128, 3)
    with pytest.raises(ValueError, match="no clips"):
        collate([], np.random.default_rng(0), config)


def test_hard_frames_are_drawn_more_often() -> None:
    """Frames of one body, each of its own grey: as it is, hidden, tucked, inverted."""
    joints_px = stick_clip(seed=0)["joints_px"][0]
    tucked_px = joints_px.copy()
    tucked_px[:, 1] = 128 + (joints_px[:, 1] - joints_px[:, 1].mean()) * np.where(np.arange(NUM_JOINTS) % 2, 0.5, -0.5)
    kinds_px = np.stack([joints_px, joints_px, tucked_px, [0, 256] + joints_px * [1, -1]])
    visible = np.ones((4, NUM_JOINTS))
    visible[1, :8] = 0
    frames = np.broadcast_to(np.array([40, 100, 160, 220], np.uint8)[:, None, None, None], (4, 256, 256, 3)).copy()
    config = replace(
        Pose2DTrainingConfig(),
        crops_per_clip=400,
        stride_probabilities=(1.0, 0.0, 0.0),
        scale=(0.8, 0.9),
        filmed_probability=0.0,
        **dict.fromkeys(("turned_probability", "colour_probability", "grey_probability", "contrast_deviation"), 0.0),
        **dict.fromkeys(("brightness_deviation", "blur_probability", "cutout_probability", "nobody_probability"), 0.0),
    )
    row = {"frames": frames, "joints_px": kinds_px, "joints_confidence": visible}
    crops = collate([row], np.random.default_rng(0), config)["crops_NFHWC"]
    num_drawn = [int((crops[:, 1, 64, 64, 0] == grey).sum()) for grey in (40, 100, 160, 220)]
    assert sum(num_drawn) == 400
    assert all(num > 1.5 * num_drawn[0] > 0 for num in num_drawn[1:])
