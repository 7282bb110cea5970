"""RTMPose: the gymnast's 2D joints in every frame, from mmpose's own network.

Path:    frames -> Pose2D
Letters: T frames, N crops, F frames in a crop, J keypoints, C, H, W; X, Y bins along a crop's width and height
Units:   pixel (x right, y down, centre of the first pixel at 0.5); a bin is 1 / simcc_split_ratio crop pixels
[1] RTMPose, arXiv:2303.07399; SimCC, arXiv:2107.03332.  Network and loss are mmpose's classes.
    We differ: a crop may hold the frames before and after as further channels of the first convolution, because blur
    and compression hide in one frame what its neighbours show.  No person detector.  A first pass over wide boxes finds
    the body, two more over boxes that follow and turn with it measure (crops.py), the last of them with a flip test,
    and places are smoothed over time (smoothing.py).  A joint is placed at the mean of the distribution around its
    peak, not at the peak, and its confidence is the probability there: the network is trained with a proper score, so
    it is calibrated up to over-fitting, where mmpose returns the raw logit.
"""

import functools
import importlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor

from finephys.pose.crops import Boxes, boxes_from_motion, boxes_from_pose, crop_to_frame, cut_crop
from finephys.pose.estimator import Pose2D
from finephys.pose.mmpose_import import import_mmpose_models, official_config
from finephys.pose.smoothing import smooth_pose
from finephys.skeleton import COCO_MIRROR, COCO_NAMES, MIRROR, coco_to_h36m

# The keypoints of each, by which of them each becomes in a mirror.
KEYPOINT_LAYOUTS = {"h36m": MIRROR, "coco": COCO_MIRROR}
# ImageNet's mean and deviation, RGB levels, as in every RTMPose config.
IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)
# Temperature of the SimCC softmax with which every RTMPose is trained (KLDiscretLoss, beta).
SIMCC_BETA = 10.0
# CSPNeXt P5's stages: in, out channels, blocks, identity, SPP.
STAGES = ((64, 128, 3, True), (128, 256, 6, True), (256, 512, 6, True), (512, 1024, 3, False))
# Crops in one forward pass: beyond 16 a CPU thread gains nothing (measured), 32 is kinder to a GPU.
CROPS_PER_FORWARD = 32
SMALLEST_SIDE_PX = 16
# Passes over boxes that follow the body. The second finds the trunk of inverted bodies that the first took for upright:
# PCK 0.05 of inverted frames 0.42 after one, 0.47 after two, 0.49 in boxes around the true joints (a smaller network).
NUM_FOLLOWING_PASSES = 2


@dataclass(frozen=True, kw_only=True)
class RTMPoseConfig:
    """The shipped network: 1.65 M parameters, 4 ms a crop on one CPU thread (batches of 32, float32).

    Crops are 128 x 128 because the demo's frames are.  RTMPose-t's five levels would end in a 4 x 4 map there; three
    stages end in 8 x 8 (as RTMPose-t's 8 x 6) and spend the parameters where the resolution is.
    """

    # "h36m", this project's joints, or "coco", official weights'.
    keypoint_layout: str = "h36m"
    # Pixels of a crop ...
    crop_height: int = 128
    # ... and across.
    crop_width: int = 128
    # Of CSPNeXt, 1 to 4.
    num_stages: int = 3
    # Of CSPNeXt's numbers of blocks.
    deepen_factor: float = 0.33
    # Of CSPNeXt's channels.
    widen_factor: float = 0.5
    # Width of the head's tokens, one a keypoint ...
    head_dim: int = 128
    # ... and of their attention.
    head_attention_dim: int = 64
    # Side of the head's first convolution.
    head_kernel_size: int = 7
    # Bins a pixel of the crop.
    simcc_split_ratio: float = 2.0
    # Deviation of the training target along x and y, 1.5 % of the crop (RTMPose: 1.3 %).
    simcc_sigma_bins: tuple[float, float] = (4.0, 4.0)
    # Odd; the frame in the middle is the one whose joints are asked for. Official weights have 1.
    frames_per_crop: int = 3


class RTMPose(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """CSPNeXt and RTMCCHead over crops, and `estimate` over clips. As in RTMPoseConfig; norm_eps: batch norm."""

    @register_to_config
    def __init__(
        self,
        keypoint_layout: str,
        crop_height: int,
        crop_width: int,
        num_stages: int,
        deepen_factor: float,
        widen_factor: float,
        head_dim: int,
        head_attention_dim: int,
        head_kernel_size: int,
        simcc_split_ratio: float,
        simcc_sigma_bins: tuple[float, float],
        norm_eps: float = 1e-3,
        frames_per_crop: int = 1,
    ) -> None:
        super().__init__()
        if frames_per_crop < 1 or frames_per_crop % 2 == 0:
            raise ValueError(f"frames_per_crop is {frames_per_crop}, wanted an odd number")
        if keypoint_layout not in KEYPOINT_LAYOUTS:
            raise ValueError(f"keypoint_layout is {keypoint_layout!r}, wanted one of {', '.join(KEYPOINT_LAYOUTS)}")
        if not 1 <= num_stages <= len(STAGES):
            raise ValueError(f"num_stages is {num_stages}, wanted 1 to {len(STAGES)}")
        stride = 2 ** (num_stages + 1)
        if crop_height % stride or crop_width % stride:
            raise ValueError(
                f"crop_height {crop_height} and crop_width {crop_width} must be multiples of {stride} "
                f"(num_stages is {num_stages})"
            )
        import_mmpose_models()
        from mmpose.models.backbones import CSPNeXt
        from mmpose.models.heads import RTMCCHead

        # The last stage, whichever it is, pools spatial pyramids and drops the identity, as P5's does.
        stages = [[*stage, False] for stage in STAGES[: num_stages - 1]]
        stages.append([*STAGES[num_stages - 1][:3], False, True])
        self.backbone = CSPNeXt(
            arch_ovewrite=stages,  # mmpose's spelling
            deepen_factor=deepen_factor,
            widen_factor=widen_factor,
            out_indices=(num_stages,),
            # Plain BN has SyncBN's parameters and runs on one CPU.
            norm_cfg={"type": "BN", "momentum": 0.03, "eps": norm_eps},
        )
        self.backbone.stem[0].conv = _with_frames(self.backbone.stem[0].conv, frames_per_crop)
        self.head = RTMCCHead(
            in_channels=int(stages[-1][1] * widen_factor),
            out_channels=len(KEYPOINT_LAYOUTS[keypoint_layout]),
            input_size=(crop_width, crop_height),
            in_featuremap_size=(crop_width // stride, crop_height // stride),
            simcc_split_ratio=simcc_split_ratio,
            final_layer_kernel_size=head_kernel_size,
            gau_cfg={
                "hidden_dims": head_dim,
                "s": head_attention_dim,
                "expansion_factor": 2,
                "dropout_rate": 0.0,
                "drop_path": 0.0,
                "act_fn": "SiLU",
                "use_rel_bias": False,
                "pos_enc": False,
            },
            loss={"type": "KLDiscretLoss", "use_target_weight": True, "beta": SIMCC_BETA, "label_softmax": True},
        )

    @classmethod
    def from_official(cls, config_name: str, checkpoint_path: str | os.PathLike[str]) -> "RTMPose":
        """An RTMPose with mmpose's published weights.

        config_name: one of the configs mmpose ships, e.g. "rtmpose-m_8xb256-420e_coco-256x192" (file name without .py).
        checkpoint_path: the local .pth (or .safetensors) published for it. Nothing but tensors, numpy arrays and
        plain containers is unpickled.
        Raises ValueError on an unknown config, one that does not have COCO's 17 keypoints, a file that holds anything
        else, and missing or unexpected weights; FileNotFoundError.
        """
        model_config = official_config(config_name).model
        backbone, head = model_config.backbone, model_config.head
        if head.out_channels != len(COCO_NAMES):
            raise ValueError(f"{config_name} has {head.out_channels} keypoints, wanted COCO's {len(COCO_NAMES)}")
        model: RTMPose = cls(
            keypoint_layout="coco",
            crop_height=head.input_size[1],
            crop_width=head.input_size[0],
            num_stages=len(STAGES),
            deepen_factor=backbone.deepen_factor,
            widen_factor=backbone.widen_factor,
            head_dim=head.gau_cfg.hidden_dims,
            head_attention_dim=head.gau_cfg.s,
            head_kernel_size=head.final_layer_kernel_size,
            simcc_split_ratio=head.simcc_split_ratio,
            simcc_sigma_bins=tuple(head.decoder.sigma),
            # CSPNeXt's own default is 1e-3, but every RTMPose config asks for SyncBN with torch's.
            norm_eps=backbone.norm_cfg.get("eps", 1e-5),
        )
        weights = _read_checkpoint(Path(checkpoint_path))
        missing = sorted(set(model.state_dict()) - set(weights))
        unexpected = sorted(set(weights) - set(model.state_dict()))
        if missing or unexpected:
            raise ValueError(
                f"{checkpoint_path} does not fit {config_name}: {len(missing)} missing weights {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}"
            )
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:  # shapes
            raise ValueError(f"{checkpoint_path} does not fit {config_name}: {error}".replace("\n", " ")) from error
        model.eval()
        return model

    def with_frames(self, frames_per_crop: int) -> "RTMPose":
        """This network of single frames, over crops of several: until it is trained, those beside the middle change
        nothing."""
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        wider: RTMPose = RTMPose(**{**config, "frames_per_crop": frames_per_crop})
        weights = self.state_dict()
        wider.backbone.stem[0].conv = _with_frames(self.backbone.stem[0].conv, frames_per_crop)
        weights["backbone.stem.0.conv.weight"] = wider.backbone.stem[0].conv.weight
        wider.load_state_dict(weights)
        return wider

    def fuse(self) -> "RTMPose":
        """Normalisation folded into the convolutions before it: a fifth faster on a CPU, and the same to rounding.

        For inference; the network can be neither trained nor saved after it.
        """
        from mmcv.cnn import fuse_conv_bn

        self.eval()
        fuse_conv_bn(self.backbone)
        return self

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of a crop in pixels."""
        return self.config.crop_height, self.config.crop_width

    def forward(self, crops_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """SimCC logits (N, J, X) and (N, J, Y) of crops_NCHW, RGB levels 0..255 of any dtype.

        C = 3 frames_per_crop: red, green and blue of the first frame, then of the next.
        """
        logits_NJX, logits_NJY = self.head(self.features(crops_NCHW))
        return logits_NJX, logits_NJY

    def features(self, crops_NCHW: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of crops_NCHW, as the head takes them: one (N, C, H / stride, W / stride)."""
        mean_C11 = torch.tensor(IMAGE_MEAN * self.config.frames_per_crop, device=crops_NCHW.device)[:, None, None]
        std_C11 = torch.tensor(IMAGE_STD * self.config.frames_per_crop, device=crops_NCHW.device)[:, None, None]
        image_NCHW = ((crops_NCHW.float() - mean_C11) / std_C11).to(self.dtype)
        # A CPU's depthwise convolutions are 1.3 times as fast (2 times with bfloat16) when channels lie together.
        image_NCHW = image_NCHW.contiguous(memory_format=torch.channels_last)
        maps: tuple[Tensor, ...] = self.backbone(image_NCHW)
        return maps

    def estimate(self, frames_THWC: NDArray[np.uint8]) -> Pose2D:
        """The gymnast's joints in each frame of one clip, frames_THWC (T, H, W, 3) uint8 RGB, any T >= 1, any size.

        A frame of a single colour shows nobody: its confidence is 0.
        Raises ValueError on any other shape or dtype.
        """
        _check_frames(frames_THWC)
        boxes = boxes_from_motion(frames_THWC, self.crop_size)
        keypoints = self._estimate_in_boxes(frames_THWC, boxes)
        for number in range(1, 1 + NUM_FOLLOWING_PASSES):
            boxes = boxes_from_pose(keypoints, boxes, self.crop_size)
            keypoints = self._estimate_in_boxes(frames_THWC, boxes, flip_test=number == NUM_FOLLOWING_PASSES)
        if self.config.keypoint_layout == "coco":
            keypoints = Pose2D(*coco_to_h36m(keypoints.joints_px, keypoints.confidence))
        is_blank_T = np.array([frame.min() == frame.max() for frame in frames_THWC])
        confidence = np.where(is_blank_T[:, None], np.float32(0), keypoints.confidence)
        return smooth_pose(Pose2D(keypoints.joints_px, confidence))

    @torch.inference_mode()
    def _estimate_in_boxes(self, frames_THWC: NDArray[np.uint8], boxes: Boxes, flip_test: bool = False) -> Pose2D:
        """One pass: the network's own keypoints (T, J, 2) in pixels of the frames, one crop a frame.

        flip_test: of the mean of what the network says of a crop and of the crop in a mirror.
        """
        was_training = self.training
        self.eval()
        to_frame_T23 = np.stack(
            [
                crop_to_frame(centre, height, self.crop_size, angle)
                for centre, height, angle in zip(boxes.centre_px, boxes.height_px, boxes.angle)
            ]
        )
        is_one_box = bool((to_frame_T23 == to_frame_T23[0]).all())

        # Where all boxes are one, as in the first pass over a small video, a frame is cut once and not by each crop
        # that it is in.
        @functools.lru_cache(maxsize=self.config.frames_per_crop)
        def cut(near: int, box: int) -> NDArray[np.uint8]:
            return cut_crop(frames_THWC[near], to_frame_T23[box], self.crop_size)

        keypoints, confidences = [], []
        for start in range(0, len(frames_THWC), CROPS_PER_FORWARD):
            chunk = range(start, min(start + CROPS_PER_FORWARD, len(frames_THWC)))
            crops_NFHWC = np.stack(
                [
                    [
                        cut(near, 0 if is_one_box else frame)
                        for near in frames_around(frame, len(frames_THWC), self.config.frames_per_crop)
                    ]
                    for frame in chunk
                ]
            )
            crops_NCHW = stack_frames(torch.from_numpy(crops_NFHWC).to(self.device))
            logits_NJX, logits_NJY = self(crops_NCHW)
            if flip_test:
                flipped_NJX, flipped_NJY = self._flipped(crops_NCHW)
                logits_NJX, logits_NJY = (logits_NJX + flipped_NJX) / 2, (logits_NJY + flipped_NJY) / 2
            crop_px_NJ2, confidence_NJ = decode_simcc(logits_NJX, logits_NJY, self.config.simcc_split_ratio)
            keypoints.append(crop_px_NJ2.cpu().numpy())
            confidences.append(confidence_NJ.cpu().numpy())
        self.train(was_training)
        scale_T22, offset_T2 = to_frame_T23[:, :, :2], to_frame_T23[:, :, 2]
        joints_px = np.einsum("tab,tjb->tja", scale_T22, np.concatenate(keypoints)) + offset_T2[:, None]
        return Pose2D(joints_px.astype(np.float32), np.concatenate(confidences))

    def _flipped(self, crops_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What forward says of the crops in a mirror, in the places and with the sides of the crops as they are."""
        mirror = list(KEYPOINT_LAYOUTS[self.config.keypoint_layout])
        logits_NJX, logits_NJY = (logits[:, mirror] for logits in self(crops_NCHW.flip(-1)))
        # Bin b is at b / split_ratio + 0.5 pixels, and so split_ratio - 1 bins from where turning them round puts it.
        beyond = round(self.config.simcc_split_ratio) - 1
        return logits_NJX.flip(-1).roll(-beyond, -1), logits_NJY


def frames_around(frame: int, num_frames: int, frames_per_crop: int, stride: int = 1) -> list[int]:
    """Which frames a crop of `frame` holds, in time order; the clip's first and last stand for those beyond it."""
    reach = frames_per_crop // 2
    return [min(max(frame + stride * offset, 0), num_frames - 1) for offset in range(-reach, reach + 1)]


def stack_frames(crops_NFHWC: Tensor) -> Tensor:
    """Crops of several frames (N, F, H, W, 3) as the network takes them (N, 3 F, H, W)."""
    return crops_NFHWC.permute(0, 1, 4, 2, 3).flatten(1, 2)


def _with_frames(convolution: torch.nn.Conv2d, num_frames: int) -> torch.nn.Conv2d:
    """The same convolution over the channels of several frames. It starts with what it was on the one in the middle."""
    out_channels, in_channels = convolution.weight.shape[:2]
    wider = torch.nn.Conv2d(
        num_frames * in_channels,
        out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )
    middle = num_frames // 2 * in_channels
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight[:, middle : middle + in_channels] = convolution.weight
    return wider


def decode_simcc(logits_NJX: Tensor, logits_NJY: Tensor, simcc_split_ratio: float) -> tuple[Tensor, Tensor]:
    """Keypoints (N, J, 2) float32 in pixels of the crop, and their confidence (N, J) float32 in [0, 1].

    Confidence is the probability that the joint lies within a twentieth of the crop's side of its place, along x
    times along y.
    """
    x_NJ, x_share_NJ = _mean_around_peak(logits_NJX)
    y_NJ, y_share_NJ = _mean_around_peak(logits_NJY)
    # mmpose puts the first pixel's centre at 0, we at 0.5.
    return torch.stack([x_NJ, y_NJ], -1) / simcc_split_ratio + 0.5, x_share_NJ * y_share_NJ


def _mean_around_peak(logits_NJX: Tensor) -> tuple[Tensor, Tensor]:
    """The mean bin of the distribution within a twentieth of its length of its peak, and its share of the whole."""
    share_NJX = (SIMCC_BETA * logits_NJX.float()).softmax(-1)
    num_bins = share_NJX.shape[-1]
    bins_X = torch.arange(num_bins, device=share_NJX.device)
    peak_NJ1 = share_NJX.argmax(-1, keepdim=True)
    near_NJX = share_NJX * ((bins_X - peak_NJ1).abs() <= num_bins // 20)
    near_share_NJ = near_NJX.sum(-1)
    return (near_NJX * bins_X).sum(-1) / near_share_NJ, near_share_NJ.clamp(max=1.0)


def _check_frames(frames_THWC: NDArray[np.uint8]) -> None:
    shape, dtype = np.shape(frames_THWC), getattr(frames_THWC, "dtype", type(frames_THWC).__name__)
    if len(shape) != 4 or shape[-1] != 3 or shape[0] < 1 or min(shape[1:3]) < SMALLEST_SIDE_PX or dtype != np.uint8:
        raise ValueError(
            f"frames have shape {shape} and dtype {dtype}, wanted (T, H, W, 3) uint8 RGB with at least 1 frame of "
            f"{SMALLEST_SIDE_PX} x {SMALLEST_SIDE_PX} pixels"
        )


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in an mmpose checkpoint or a safetensors file, without unpickling arbitrary objects."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint_path {path} is not a file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    # What mmengine's runner leaves in a checkpoint's meta beside tensors: arrays and scalars of the usual dtypes.
    # numpy moved numpy.core to numpy._core: files name either.
    numpy_core = importlib.import_module("numpy._core.multiarray")
    allowed: list[Any] = [np.ndarray, np.dtype]
    # A HistoryBuffer names its own methods through getattr; neither the real class nor the real getattr is let in.
    allowed += [(_History, "mmengine.logging.history_buffer.HistoryBuffer"), (_no_attribute, "builtins.getattr")]
    allowed += [type(np.dtype(name)) for name in ("float32", "float64", "int64")]
    for name in ("scalar", "_reconstruct"):
        allowed += [(getattr(numpy_core, name), f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        # torch's message runs to a page; the line that names the class or the damage comes last or nearly so.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if "Unsupported" in line), lines[0])
        raise ValueError(f"{path} is not a checkpoint of plain weights: {reason}") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds {type(content).__name__}, wanted a state_dict of tensors")
    return {name: value for name, value in weights.items() if not name.startswith("data_preprocessor.")}


class _History:
    """Stands for mmengine's HistoryBuffer (past losses) while a checkpoint is read: what it holds is not used."""


def _no_attribute(*_: object) -> None:
    """Stands for getattr while a checkpoint is read."""
