"""How far the estimated motion of the camera is from the true one, on held-out clips.

Path:    Detection -> figures
Letters: T frames, N clips
Units:   degree, percent, pixels at 256 px
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from finephys.data.steady import true_camera_motion
from finephys.evaluation.detections import Detection
from finephys.evaluation.figures import Figure
from finephys.evaluation.lifts import middle_intrinsics
from finephys.pose.camera_estimation import estimate_camera_motion
from finephys.pose.camera_motion import CameraMotion
from finephys.pose.estimator import Pose2D


def camera_figures(detections: Sequence[Detection]) -> list[Figure]:
    """Errors of turn and zoom of cameras that move, of the joints that they stabilise, and whether still and moving
    cameras are told apart. The goals are ours; the issue has none."""
    turns_deg, zooms, joints_px, states, known = [], [], [], [], []
    for found in detections:
        true = true_camera_motion(found.clip)
        assert true is not None
        intrinsics = middle_intrinsics(found.clip)
        camera = estimate_camera_motion(found.frames_THWC, found.pose, intrinsics, found.clip.fps)
        states.append(camera.is_static == true.is_static)
        known.append(camera.is_known)
        if not true.is_static:
            turn_deg, zoom = camera_errors(camera, true)
            turns_deg.append(turn_deg.mean())
            zooms.append(zoom.mean())
            assert found.clip.joints_px is not None
            everywhere = Pose2D(found.clip.joints_px, np.ones(found.clip.joints_px.shape[:2], np.float32))
            apart_px = camera.stabilise(everywhere, intrinsics).joints_px
            apart_px = apart_px - true.stabilise(everywhere, intrinsics).joints_px
            side_px = max(found.frames_THWC.shape[1:3])
            joints_px.append(np.nanmedian(np.linalg.norm(apart_px, axis=-1)) * 256 / side_px)

    def middle(values: Sequence[float], share: float = 0.5) -> float:
        return float(np.quantile(values, share)) if values else np.nan

    return [
        Figure(name="camera_known", value=float(np.mean(known)), at_least=0.95),
        Figure(name="camera_still_or_moving_right", value=float(np.mean(states)), at_least=0.95),
        Figure(name="camera_turn_error_deg", value=middle(turns_deg), at_most=0.25),
        Figure(name="camera_turn_error_deg_worst_tenth", value=middle(turns_deg, 0.9)),
        Figure(name="camera_zoom_error_percent", value=middle([100 * zoom for zoom in zooms]), at_most=1.0),
        Figure(name="camera_joints_error_px_at_256", value=middle(joints_px)),
    ]


def camera_errors(camera: CameraMotion, true: CameraMotion) -> tuple[np.ndarray, np.ndarray]:
    """(T,) degrees between the turns, (T,) relative errors of the zoom."""
    apart = Rotation.from_matrix(camera.rotation) * Rotation.from_matrix(true.rotation).inv()
    return np.degrees(apart.magnitude()), np.abs(camera.zoom / true.zoom - 1)
