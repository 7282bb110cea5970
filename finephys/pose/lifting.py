"""Lift a clip's 2D joints to metric 3D by analogy with a bank of solved examples.

Path:    Pose2D -> Pose3D (S_dd)
Letters: B clips, T frames, N windows, F = 16 frames of a window, J = 17 joints, A = J + 1 points (joints and the
         reference below), K prompts, P examples in the bank, D width
Units:   metre, pixel; `ray` is (X/Z, Y/Z)
Frames:  camera, x right, y down, z forward
[1] Skeleton-in-Context, Wang et al., CVPR 2024 (MIT): prompt and query are (input, target) joined in time, the query's
    target half is completed, the two streams merge by averaging before the third layer, and the output is the
    residual on `prompt_target - prompt_input + query_input`.

We differ from [1]: the prompts are looked up (the examples and their mirror images that look most like the query) and
not drawn at random; input and target are joined in channels and a window is A + F + 1 tokens, one for each point over
all frames (the spatial stream), one for each frame with all points (the temporal stream) and one for the scene, where
[1] has one for each joint of each frame of either half, fifteen times as many; how much of the residual is added is
learned, because with it comes the detector's noise; confidence is a channel, and a dropped joint is a learned token
that takes the prompts' place in the residual; and the result is absolute: depth is predicted as the logarithm of a
correction to NOMINAL_EXTENT_M / (apparent extent), beside gravity and whether the camera stands still.

How a window is normalised, and what the reference is, stands in examples.py.

Prompts may also be given with the query: solved windows of the same performer before the same camera. Then they and
not the bank's complete it, a learned token says so, and the result is as large as they are, by construction. What they
share with the query (proportions, size, how the camera is tilted) cannot be read off the query alone, which is what
training's episodes teach (windows.py). A clip without any gives itself its own: it is lifted once, and the windows that
are the surest then complete it the second time. Each output comes with a spread, the error that is expected of it; a
network saved without knows none, and lifts once.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from finephys.pose.camera import unproject
from finephys.pose.estimator import Pose2D
from finephys.pose.examples import (
    NOMINAL_EXTENT_M,
    Examples,
    Windows,
    body_size,
    nearest_examples,
    normalise,
    solved,
    window_table,
)
from finephys.skeleton import MIRROR, NUM_JOINTS

# Where the expected errors start: of a joint in metres; of the root's depth as a share, of gravity in radians.
NOMINAL_SPREAD_M = 0.15
NOMINAL_SCENE_SPREAD = 0.1

# Windows of its first lifting that a clip is completed with the second time, apart by half a window where it is long
# enough. Two, or six, do as well to a millimetre.
OWN_PROMPTS = 4

# Windows that go through the network at once: bounds the memory that a long clip takes.
_WINDOWS_AT_ONCE = 256


@dataclass(frozen=True)
class Pose3D:
    """One clip's motion as lifted.

    joints_cam_m (T, 17, 3) float32 metres, absolute in the camera frame; gravity_cam (3,) float32 unit, points down;
    static_probability: how likely the camera stood still, calibrated as far as its cross-entropy is trained.
    Expected errors, None from a network that was trained without: joints_spread_m (T, 17) float32 metres, distance of
    a joint with the roots put on each other; root_spread, of the root's depth, as a share of it; gravity_spread_deg.
    """

    joints_cam_m: NDArray[np.float32]
    gravity_cam: NDArray[np.float32]
    static_probability: float
    joints_spread_m: NDArray[np.float32] | None = None
    root_spread: float | None = None
    gravity_spread_deg: float | None = None

    @property
    def root_cam_m(self) -> NDArray[np.float32]:
        """(T, 3) float32 metres: the root's trajectory."""
        return self.joints_cam_m[:, 0]


@dataclass(frozen=True, kw_only=True)
class LifterConfig:
    """The shipped lifter. Weights saved before has_spread and is_episodic existed have neither."""

    # Of the tokens of the network.
    width: int = 128
    # Transformer layers.
    num_layers: int = 6
    # Heads of each attention.
    num_heads: int = 4
    # Prompts and query are averaged before this layer.
    merge_layer: int = 2
    # Examples that complete one query; 0 is the same network without prompts.
    num_prompts: int = 2
    # Windows in the bank that prompts are chosen from ...
    bank_size: int = 192
    # ... and frames of a window, at 30 a second.
    window_frames: int = 16
    # A joint less sure than this is a missing token.
    missing_below: float = 0.3
    # Whether it says how far off it expects to be.
    has_spread: bool = True
    # Whether it is told if prompts were given with the query.
    is_episodic: bool = True

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if not 0 <= self.merge_layer <= self.num_layers:
            raise ValueError(f"merge_layer {self.merge_layer} must be in 0..num_layers ({self.num_layers})")
        if not 0 <= self.num_prompts <= self.bank_size:
            raise ValueError(f"num_prompts {self.num_prompts} must be in 0..bank_size ({self.bank_size})")


@dataclass(frozen=True)
class Prompts:
    """Solved windows that come with each clip of a batch: the same performer before the same camera.

    joints_cam_m_BCFJ3 metres, absolute in the camera frame, at about 30 fps; gravity_BC3 unit, down; is_given_B bool:
    where false the bank's complete the clip.
    """

    joints_cam_m_BCFJ3: Tensor
    gravity_BC3: Tensor
    is_given_B: Tensor


@dataclass(frozen=True)
class Lifted:
    """What lift_batch finds: joints (B, T, 17, 3) metres, gravity (B, 3) unit, static logit (B,), and expected errors.

    These are None without has_spread: of joints (B, T, 17) metres, of the root's depth (B,) as a share of it, of
    gravity (B,) radians.
    """

    joints_BTJ3: Tensor
    gravity_B3: Tensor
    static_logit_B: Tensor
    joints_spread_BTJ: Tensor | None
    root_spread_B: Tensor | None
    gravity_spread_B: Tensor | None


class Lifter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """2D joints of a clip -> absolute 3D joints, gravity, static camera or not. See the module's docstring."""

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        width: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        merge_layer: int = 2,
        num_prompts: int = 2,
        bank_size: int = 192,
        window_frames: int = 16,
        missing_below: float = 0.3,
        has_spread: bool = False,
        is_episodic: bool = False,
    ) -> None:
        super().__init__()
        self.window_frames, self.missing_below = window_frames, missing_below
        self.num_prompts, self.merge_layer = num_prompts, merge_layer
        self.register_buffer("bank_rays_PFJ2", torch.zeros(bank_size, window_frames, NUM_JOINTS, 2))
        self.register_buffer("bank_joints_cam_m_PFJ3", torch.ones(bank_size, window_frames, NUM_JOINTS, 3))
        self.register_buffer("bank_gravity_P3", torch.ones(bank_size, 3))

        num_points = NUM_JOINTS + 1
        # Of each point and frame: x, y, confidence; the same of the target: x, y, z.
        self.missing_token = nn.Parameter(torch.zeros(num_points, 3))
        self.embed_point = nn.Linear(6 * window_frames, width)
        self.embed_frame = nn.Linear(6 * num_points, width)
        self.embed_scene = nn.Linear(4 + 3, width)
        self.position = nn.Parameter(0.02 * torch.randn(num_points + 1 + window_frames, width))
        self.layers = nn.ModuleList(_Layer(width, num_heads, num_points + 1) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.point_head = nn.Linear(width, 3 * window_frames)
        self.frame_head = nn.Linear(width, 3 * num_points)
        # How much of the analogy's guess reaches the output beside the network's own. [1] adds all of it, which here
        # adds the detector's noise: after 250 steps of one small network 170 mm and 2.3 m/s, without it 138 mm and 1.0.
        self.guess_share = nn.Parameter(torch.zeros(num_points, 3))
        # log depth of the whole window, gravity, static logit.
        self.scene_head = nn.Linear(width, 5)
        heads = [self.point_head, self.frame_head, self.scene_head]
        if has_spread:
            # Logarithms of the expected errors: of each joint and frame; of the root's depth and of gravity.
            self.point_spread_head = nn.Linear(width, window_frames)
            self.scene_spread_head = nn.Linear(width, 2)
            heads += [self.point_spread_head, self.scene_spread_head]
        if is_episodic and num_prompts:
            self.given_token = nn.Parameter(torch.zeros(width))
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def set_bank(self, joints_cam_m_PFJ3: Tensor, gravity_P3: Tensor) -> None:
        """Replace the bank's examples: joints (P, F, 17, 3) metres in the camera frame, gravity (P, 3) unit.

        Their 2D halves are exact projections. Raises ValueError on any other number of examples or frames.
        """
        if joints_cam_m_PFJ3.shape != self.bank_joints_cam_m_PFJ3.shape:
            raise ValueError(
                f"joints_cam_m has shape {tuple(joints_cam_m_PFJ3.shape)}, "
                f"the bank wants {tuple(self.bank_joints_cam_m_PFJ3.shape)}"
            )
        self.bank_joints_cam_m_PFJ3.copy_(joints_cam_m_PFJ3)
        self.bank_rays_PFJ2.copy_(joints_cam_m_PFJ3[..., :2] / joints_cam_m_PFJ3[..., 2:])
        self.bank_gravity_P3.copy_(gravity_P3)

    def lift(
        self,
        pose: Pose2D,
        intrinsics: NDArray[np.floating],
        fps: float,
        prompts: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    ) -> Pose3D:
        """Lift one clip of any length T >= 2; memory is bounded, time is linear in T.

        pose: pixels of the image that intrinsics (3, 3) are for.  prompts: solved windows of this performer before this
        camera, joints (C, F, 17, 3) in metres in the camera frame and gravity (C, 3); the clip's own where None.
        Raises ValueError on a shorter clip, other shapes, and fewer prompts than num_prompts.
        """
        num_frames = len(pose.joints_px)
        wanted = (num_frames, NUM_JOINTS)
        if num_frames < 2 or pose.joints_px.shape != (*wanted, 2) or pose.confidence.shape != wanted:
            raise ValueError(
                f"joints_px {pose.joints_px.shape} and confidence {pose.confidence.shape} "
                f"must be (T, {NUM_JOINTS}, 2) and (T, {NUM_JOINTS}) with T >= 2"
            )
        if not fps > 0:
            raise ValueError(f"fps {fps} must be positive")
        device = self.bank_gravity_P3.device
        with torch.no_grad():
            lifted = self.lift_both_ways(
                torch.tensor(pose.joints_px, dtype=torch.float32, device=device)[None],
                torch.tensor(pose.confidence, dtype=torch.float32, device=device)[None],
                torch.tensor(np.asarray(intrinsics), dtype=torch.float32, device=device)[None],
                torch.tensor([fps], dtype=torch.float32),
                None if prompts is None or not self.num_prompts else self._given(*prompts),
            )
        known = lifted.joints_spread_BTJ is not None
        assert (lifted.root_spread_B is not None) == (lifted.gravity_spread_B is not None) == known
        return Pose3D(
            lifted.joints_BTJ3[0].cpu().numpy(),
            lifted.gravity_B3[0].cpu().numpy(),
            float(torch.sigmoid(lifted.static_logit_B[0])),
            None if lifted.joints_spread_BTJ is None else lifted.joints_spread_BTJ[0].cpu().numpy(),
            None if lifted.root_spread_B is None else float(lifted.root_spread_B[0]),
            None if lifted.gravity_spread_B is None else float(torch.rad2deg(lifted.gravity_spread_B[0])),
        )

    def _given(self, joints_cam_m: NDArray[np.floating], gravity: NDArray[np.floating]) -> Prompts:
        """Prompts of one clip, checked."""
        wanted = (self.window_frames, NUM_JOINTS, 3)
        if joints_cam_m.shape[1:] != wanted or gravity.shape != (len(joints_cam_m), 3):
            raise ValueError(
                f"prompts have shapes {joints_cam_m.shape} and {gravity.shape}, wanted (C, {wanted}), (C, 3)"
            )
        if len(joints_cam_m) < self.num_prompts:
            raise ValueError(f"{len(joints_cam_m)} prompts are given, wanted at least num_prompts ({self.num_prompts})")
        device = self.bank_gravity_P3.device
        return Prompts(
            torch.tensor(joints_cam_m, dtype=torch.float32, device=device)[None],
            torch.tensor(gravity, dtype=torch.float32, device=device)[None],
            torch.ones(1, dtype=torch.bool, device=device),
        )

    def forward(
        self, joints_px_BTJ2: Tensor, confidence_BTJ: Tensor, intrinsics_B33: Tensor, fps_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Joints, gravity and static logit of lift_both_ways with the clips' own prompts."""
        lifted = self.lift_both_ways(joints_px_BTJ2, confidence_BTJ, intrinsics_B33, fps_B)
        return lifted.joints_BTJ3, lifted.gravity_B3, lifted.static_logit_B

    def lift_both_ways(
        self,
        joints_px_BTJ2: Tensor,
        confidence_BTJ: Tensor,
        intrinsics_B33: Tensor,
        fps_B: Tensor,
        prompts: Prompts | None = None,
    ) -> Lifted:
        """Lift clips of one length, twice where no prompts are given (see above), each time as _lift_mirrored does.

        Gravity is then the first lifting's, without a gradient: the second was told it by its prompts, and makes it no
        better.
        Arguments as of lift_batch; prompts whose is_given_B is False leave the clip to the bank, lifted once.
        """
        arguments = joints_px_BTJ2, confidence_BTJ, intrinsics_B33, fps_B
        if prompts is not None or not self.num_prompts or not self.config.has_spread:
            return self._lift_mirrored(*arguments, prompts)
        with torch.no_grad():
            first = self._lift_mirrored(*arguments, None)
            prompts = self._own_prompts(first, fps_B)
        lifted = self._lift_mirrored(*arguments, prompts)
        return replace(lifted, gravity_B3=first.gravity_B3, gravity_spread_B=first.gravity_spread_B)

    def _own_prompts(self, lifted: Lifted, fps_B: Tensor) -> Prompts:
        """The windows of each lifted clip whose joints are expected to be least off, OWN_PROMPTS of each."""
        assert lifted.joints_spread_BTJ is not None
        num_windows = max(OWN_PROMPTS, self.num_prompts)
        windows = []
        for joints_TJ3, spread_T, fps in zip(lifted.joints_BTJ3, lifted.joints_spread_BTJ.mean(-1), fps_B.tolist()):
            offset_F = (torch.arange(self.window_frames, device=spread_T.device) * (fps / 30)).round().long()
            start_S = torch.arange(max(1, len(spread_T) - int(offset_F[-1])), device=spread_T.device)
            # A clip that is too short stays on its last pose, as training's prompts do.
            frame_SF = (start_S[:, None] + offset_F).clamp(max=len(spread_T) - 1)
            spread_S = spread_T[frame_SF].mean(1)
            for _ in range(num_windows):
                surest = spread_S.argmin()
                windows.append(joints_TJ3[frame_SF[surest]])
                # Farther off than any other, but for those that were taken before.
                spread_S = spread_S + 1e3 * ((start_S - surest).abs() * 2 < offset_F[-1])
        return Prompts(
            torch.stack(windows).unflatten(0, (len(fps_B), num_windows)),
            lifted.gravity_B3[:, None].expand(-1, num_windows, -1),
            torch.ones_like(lifted.gravity_B3[:, 0], dtype=torch.bool),
        )

    def _lift_mirrored(
        self,
        joints_px_BTJ2: Tensor,
        confidence_BTJ: Tensor,
        intrinsics_B33: Tensor,
        fps_B: Tensor,
        prompts: Prompts | None,
    ) -> Lifted:
        """The mean of lift_batch of the clips and of their mirror images, so that the mirror image of a clip is lifted
        to the mirror image of its motion. Arguments as of lift_batch."""
        num_clips = len(fps_B)
        across_B1, mirror = intrinsics_B33[:, None, None, 0, 2], list(MIRROR)
        mirrored_px = joints_px_BTJ2[:, :, mirror]
        mirrored_px = torch.stack([2 * across_B1 - mirrored_px[..., 0], mirrored_px[..., 1]], -1)
        flip_3 = intrinsics_B33.new_tensor([-1.0, 1.0, 1.0])
        if prompts is not None:
            prompts = Prompts(
                torch.cat([prompts.joints_cam_m_BCFJ3, prompts.joints_cam_m_BCFJ3[:, :, :, mirror] * flip_3]),
                torch.cat([prompts.gravity_BC3, prompts.gravity_BC3 * flip_3]),
                prompts.is_given_B.repeat(2),
            )
        both = self.lift_batch(
            torch.cat([joints_px_BTJ2, mirrored_px]),
            torch.cat([confidence_BTJ, confidence_BTJ[:, :, mirror]]),
            intrinsics_B33.repeat(2, 1, 1),
            fps_B.repeat(2),
            prompts,
        )

        def mean(value: Tensor) -> Tensor:
            return 0.5 * (value[:num_clips] + value[num_clips:])

        def mean_of_joints(value: Tensor) -> Tensor:
            return 0.5 * (value[:num_clips] + value[num_clips:, :, mirror])

        joints_BTJ3 = 0.5 * (both.joints_BTJ3[:num_clips] + both.joints_BTJ3[num_clips:][:, :, mirror] * flip_3)
        gravity_B3 = functional.normalize(both.gravity_B3[:num_clips] + both.gravity_B3[num_clips:] * flip_3, dim=-1)
        return Lifted(
            joints_BTJ3,
            gravity_B3,
            mean(both.static_logit_B),
            None if both.joints_spread_BTJ is None else mean_of_joints(both.joints_spread_BTJ),
            None if both.root_spread_B is None else mean(both.root_spread_B),
            None if both.gravity_spread_B is None else mean(both.gravity_spread_B),
        )

    def lift_batch(
        self,
        joints_px_BTJ2: Tensor,
        confidence_BTJ: Tensor,
        intrinsics_B33: Tensor,
        fps_B: Tensor,
        prompts: Prompts | None = None,
    ) -> Lifted:
        """Lift clips of one length; differentiable in the weights.

        joints_px_BTJ2 pixels (anything, NaN too, where the confidence is below missing_below), confidence_BTJ in
        [0, 1], intrinsics_B33 pixels, fps_B; prompts: given with the clips, of one number each.
        """
        num_clips, num_frames = confidence_BTJ.shape[:2]
        seen_BTJ = (confidence_BTJ >= self.missing_below) & joints_px_BTJ2.isfinite().all(-1)
        rays_BTJ2 = unproject(joints_px_BTJ2, intrinsics_B33[:, None])
        rays_BTJ2 = torch.where(seen_BTJ[..., None], rays_BTJ2, torch.zeros_like(rays_BTJ2))
        sure_BTJ = torch.where(seen_BTJ, confidence_BTJ, torch.zeros_like(confidence_BTJ))

        clip_N, frame_NF, weight_NF = (
            index.to(rays_BTJ2.device) for index in window_table(num_frames, fps_B.tolist(), self.window_frames)
        )
        examples = self._bank() if self.num_prompts else None
        is_allowed_BP = None
        if examples is not None and prompts is not None:
            num_bank, num_given = len(examples.gravity_P3), prompts.gravity_BC3.shape[1]
            examples = examples.followed_by(
                solved(
                    prompts.joints_cam_m_BCFJ3.flatten(0, 1),
                    prompts.gravity_BC3.flatten(0, 1),
                    body_size(prompts.joints_cam_m_BCFJ3).mean(1).repeat_interleave(num_given),
                )
            )
            own_BB = torch.eye(num_clips, dtype=torch.bool, device=rays_BTJ2.device) & prompts.is_given_B[:, None]
            is_allowed_BP = torch.cat(
                [~prompts.is_given_B[:, None].expand(-1, num_bank), own_BB.repeat_interleave(num_given, 1)], 1
            )
        completed = []
        for clip_n, frame_nF, weight_nF in zip(
            clip_N.split(_WINDOWS_AT_ONCE), frame_NF.split(_WINDOWS_AT_ONCE), weight_NF.split(_WINDOWS_AT_ONCE)
        ):
            inside_nF1 = (weight_nF > 0)[..., None]
            sure_nFJ = sure_BTJ[clip_n[:, None], frame_nF] * inside_nF1
            windows = normalise(rays_BTJ2[clip_n[:, None], frame_nF], sure_nFJ)
            is_allowed_nP = None if is_allowed_BP is None else is_allowed_BP[clip_n]
            is_given_n = None if prompts is None else prompts.is_given_B[clip_n]
            completed.append(self.complete(windows, examples, is_allowed_nP, is_given_n))
        joints_NFJ3, gravity_N3, static_N, *spreads = (torch.cat(parts) for parts in zip(*completed))

        # Blend the windows in time.
        flat_NF = clip_N[:, None] * num_frames + frame_NF
        total_BT = weight_NF.new_zeros(num_clips * num_frames).index_add(0, flat_NF.flatten(), weight_NF.flatten())
        joints_BTJ3 = joints_NFJ3.new_zeros(num_clips * num_frames, NUM_JOINTS, 3)
        joints_BTJ3 = joints_BTJ3.index_add(
            0, flat_NF.flatten(), (weight_NF[..., None, None] * joints_NFJ3).flatten(0, 1)
        )
        joints_BTJ3 = (joints_BTJ3 / total_BT[:, None, None]).unflatten(0, (num_clips, num_frames))
        count_B = weight_NF.new_zeros(num_clips).index_add(0, clip_N, torch.ones_like(weight_NF[:, 0]))
        # By inverse variance: a kick says less of where down is than standing before it does.
        sure_N = spreads[1][:, 1].detach() ** -2 if spreads else torch.ones_like(static_N)
        gravity_B3 = gravity_N3.new_zeros(num_clips, 3).index_add(0, clip_N, sure_N[:, None] * gravity_N3)
        static_B = static_N.new_zeros(num_clips).index_add(0, clip_N, static_N) / count_B
        gravity_B3 = functional.normalize(gravity_B3, dim=-1)
        if not spreads:
            return Lifted(joints_BTJ3, gravity_B3, static_B, None, None, None)
        spread_NFJ, scene_N2 = spreads
        spread_BTJ = spread_NFJ.new_zeros(num_clips * num_frames, NUM_JOINTS)
        spread_BTJ = spread_BTJ.index_add(0, flat_NF.flatten(), (weight_NF[..., None] * spread_NFJ).flatten(0, 1))
        spread_BTJ = (spread_BTJ / total_BT[:, None]).unflatten(0, (num_clips, num_frames))
        scene_B2 = scene_N2.new_zeros(num_clips, 2).index_add(0, clip_N, scene_N2) / count_B[:, None]
        return Lifted(joints_BTJ3, gravity_B3, static_B, spread_BTJ, scene_B2[:, 0], scene_B2[:, 1])

    def _bank(self) -> Examples:
        """The bank in the network's terms, each example followed (P later) by its mirror image."""
        # Whose body a clip's is nobody knows: in the bank all are of the usual size.
        size_P = torch.ones_like(self.bank_gravity_P3[:, 0])
        examples = solved(self.bank_joints_cam_m_PFJ3, self.bank_gravity_P3, size_P, self.bank_rays_PFJ2)
        return examples.followed_by(examples.mirrored())

    def complete(
        self,
        query: Windows,
        examples: Examples | None,
        is_allowed_NP: Tensor | None,
        is_given_N: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Joints (N, F, 17, 3) metres in the camera frame, gravity (N, 3) unit, static logit (N,) of the windows, and
        with has_spread the expected errors of joints (N, F, 17) metres and of the root's depth and gravity (N, 2)."""
        if examples is None:
            guess_NFA3 = functional.pad(query.points_NFA2, (0, 1))
            token_NLD = self._tokens(query, guess_NFA3, torch.zeros_like(guess_NFA3[:, 0, 0]))
            for layer in self.layers:
                token_NLD = layer(token_NLD)
            return self._read_out(query, guess_NFA3, self.norm(token_NLD), torch.ones_like(query.scale_N))
        prompt_NK = nearest_examples(query, examples, self.num_prompts, is_allowed_NP)
        prompts = examples.windows
        target_NFA3 = examples.target_PFA3[prompt_NK].mean(1)
        seen_NFA1 = (query.sure_NFA > 0)[..., None]
        # By analogy: the target differs from the prompt's as the input does; an unseen joint is the prompt's.
        difference_NFA2 = torch.where(seen_NFA1, query.points_NFA2 - prompts.points_NFA2[prompt_NK].mean(1), 0.0)
        guess_NFA3 = target_NFA3 + functional.pad(difference_NFA2, (0, 1))
        gravity_N3 = examples.gravity_P3[prompt_NK].mean(1)

        query_NLD = self._tokens(query, guess_NFA3, gravity_N3)
        if is_given_N is not None and self.config.is_episodic:
            query_NLD = query_NLD + torch.where(is_given_N[:, None, None], self.given_token, 0.0)
        # Each example that any window uses goes through the layers once.
        used_U, which_NK = prompt_NK.unique(return_inverse=True)
        used = prompts.chosen(used_U)
        prompt_ULD = self._tokens(used, examples.target_PFA3[used_U], examples.gravity_P3[used_U])
        stream_MLD = torch.cat([query_NLD, prompt_ULD])
        for layer in self.layers[: self.merge_layer]:
            stream_MLD = layer(stream_MLD)
        query_NLD, prompt_ULD = stream_MLD[: len(query_NLD)], stream_MLD[len(query_NLD) :]
        merged_NLD = 0.5 * (query_NLD + prompt_ULD[which_NK].mean(1))
        for layer in self.layers[self.merge_layer :]:
            merged_NLD = layer(merged_NLD)
        return self._read_out(query, guess_NFA3, self.norm(merged_NLD), examples.size_P[prompt_NK].mean(1))

    def _tokens(self, windows: Windows, target_NFA3: Tensor, gravity_N3: Tensor) -> Tensor:
        """(N, A + 1 + F, D): points, scene, frames; each says what is seen and what the target is or may be."""
        sure_NFA1 = windows.sure_NFA[..., None]
        input_NFA3 = torch.cat([windows.points_NFA2, sure_NFA1], -1)
        input_NFA3 = torch.where(sure_NFA1 > 0, input_NFA3, self.missing_token)
        joined_NFA6 = torch.cat([input_NFA3, target_NFA3], -1)
        point_NAD = self.embed_point(joined_NFA6.transpose(1, 2).flatten(2))
        scene_N1D = self.embed_scene(torch.cat([windows.scene(), gravity_N3], -1))[:, None]
        frame_NFD = self.embed_frame(joined_NFA6.flatten(2))
        return torch.cat([point_NAD, scene_N1D, frame_NFD], 1) + self.position

    def _read_out(self, query: Windows, guess_NFA3: Tensor, token_NLD: Tensor, size_N: Tensor) -> tuple[Tensor, ...]:
        """From tokens to metres. The network speaks of a body of the usual size; the prompts' is put in its place."""
        # Half precision would cost millimetres here, where layers are cheap.
        with torch.autocast(token_NLD.device.type, enabled=False):
            return self._metres(query, guess_NFA3, token_NLD.float(), size_N)

    def _metres(self, query: Windows, guess_NFA3: Tensor, token_NLD: Tensor, size_N: Tensor) -> tuple[Tensor, ...]:
        num_points = NUM_JOINTS + 1
        point_NAD, scene_N1D, frame_NFD = token_NLD.split([num_points, 1, self.window_frames], 1)
        output_NFA3 = self.guess_share * guess_NFA3 + self.frame_head(frame_NFD).unflatten(-1, (num_points, 3))
        output_NFA3 = output_NFA3 + self.point_head(point_NAD).unflatten(-1, (self.window_frames, 3)).transpose(1, 2)
        log_depth_N1, down_N3, static_N1 = self.scene_head(scene_N1D[:, 0]).split([1, 3, 1], -1)

        depth_NF = (size_N * NOMINAL_EXTENT_M / query.scale_N)[:, None] * (
            output_NFA3[:, :, -1, 2] + log_depth_N1
        ).exp()
        reference_NF3 = torch.cat([query.reference_NF2, torch.ones_like(depth_NF)[..., None]], -1) * depth_NF[..., None]
        extent_N111 = size_N[:, None, None, None] * NOMINAL_EXTENT_M
        joints_NFJ3 = reference_NF3[:, :, None] + extent_N111 * output_NFA3[:, :, :-1]
        # A level camera is where gravity starts from.
        gravity_N3 = functional.normalize(down_N3 + down_N3.new_tensor([0.0, 1.0, 0.0]), dim=-1)
        found = joints_NFJ3, gravity_N3, static_N1[:, 0]
        if not self.config.has_spread:
            return found
        spread_NFJ = NOMINAL_SPREAD_M * self.point_spread_head(point_NAD[:, :-1]).transpose(1, 2).clamp(-6, 6).exp()
        scene_N2 = NOMINAL_SCENE_SPREAD * self.scene_spread_head(scene_N1D[:, 0]).clamp(-6, 6).exp()
        return *found, spread_NFJ, scene_N2


class _Layer(nn.Module):
    """One layer of two streams: all tokens attend to each other, then points and frames go through their own MLP.

    The first tokens_of_space tokens are the spatial stream (points and scene), the rest the temporal one (frames).
    """

    def __init__(self, width: int, num_heads: int, tokens_of_space: int) -> None:
        super().__init__()
        self.num_heads, self.tokens_of_space = num_heads, tokens_of_space
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.space_mlp = _mlp(width)
        self.time_mlp = _mlp(width)

    def forward(self, token_NLD: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        heads = self.query_key_value(self.norm(token_NLD)).unflatten(-1, (3, self.num_heads, -1))
        query_NHLd, key_NHLd, value_NHLd = heads.permute(2, 0, 3, 1, 4).unbind(0)
        # A CPU's fused attention takes half of a training step at this length, written out it takes a tenth.
        weight_NHLL = (query_NHLd @ key_NHLd.transpose(-1, -2) * query_NHLd.shape[-1] ** -0.5).softmax(-1)
        mixed_NHLd = weight_NHLL.to(value_NHLd.dtype) @ value_NHLd
        token_NLD = token_NLD + self.project(mixed_NHLd.transpose(1, 2).flatten(2))
        space, time = token_NLD[:, : self.tokens_of_space], token_NLD[:, self.tokens_of_space :]
        return torch.cat([space + self.space_mlp(space), time + self.time_mlp(time)], 1)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
