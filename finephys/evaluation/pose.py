"""How far estimated poses are from true ones, in 2D and in 3D.

Path:    Pose2D, Pose3D -> numbers
Letters: T frames, J joints (the first is the root)
Units:   pixel, metre
[1] PCK: Yang and Ramanan, TPAMI 2013, with the person's box as the reference length.
[2] MPJPE: Ionescu et al., TPAMI 2014; PA-MPJPE: after a similarity alignment, Umeyama, TPAMI 1991.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def correct_keypoints(joints_px: Floats, truth_px: Floats, threshold: float = 0.05) -> NDArray[np.bool_]:
    """Which joints lie within `threshold` times the long side of the true joints' box, frame by frame.

    joints_px, truth_px (T, J, 2) pixels -> (T, J). A joint that is not finite is not correct.
    """
    _check_same_shape(joints_px, truth_px, 2)
    long_side_px = np.ptp(truth_px, axis=1).max(-1)
    error_px = np.linalg.norm(joints_px - truth_px, axis=-1)
    return np.asarray(error_px <= threshold * long_side_px[:, None])


def pck(
    joints_px: Floats, truth_px: Floats, threshold: float = 0.05, counted: NDArray[np.bool_] | None = None
) -> float:
    """The share of correct keypoints [1] in [0, 1]; counted (T, J) restricts it to those joints, all without it.

    Raises ValueError where nothing is counted.
    """
    correct = correct_keypoints(joints_px, truth_px, threshold).astype(np.float64)
    return float(_counted(correct, counted).mean())


def median_error(joints_px: Floats, truth_px: Floats, counted: NDArray[np.bool_] | None = None) -> float:
    """The median distance in pixels of joints_px from truth_px, both (T, J, 2); counted as in pck."""
    _check_same_shape(joints_px, truth_px, 2)
    error_px = np.linalg.norm(joints_px - truth_px, axis=-1).astype(np.float64)
    return float(np.median(_counted(error_px, counted)))


def mpjpe(joints_m: Floats, truth_m: Floats) -> float:
    """The mean distance in metres per joint [2] with the roots put on each other; both (T, J, 3)."""
    _check_same_shape(joints_m, truth_m, 3)
    error_m = (joints_m - joints_m[:, :1]) - (truth_m - truth_m[:, :1])
    return float(np.linalg.norm(error_m, axis=-1).mean())


def pa_mpjpe(joints_m: Floats, truth_m: Floats) -> float:
    """The mean distance in metres per joint after aligning each frame by rotation, scale and shift [2]; (T, J, 3)."""
    _check_same_shape(joints_m, truth_m, 3)
    aligned_m = _procrustes(joints_m.astype(np.float64), truth_m.astype(np.float64))
    return float(np.linalg.norm(aligned_m - truth_m, axis=-1).mean())


def _procrustes(joints_m: NDArray[np.float64], truth_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """joints_m (T, J, 3) moved onto truth_m by the best similarity transform of each frame."""
    joints_mean_m, truth_mean_m = joints_m.mean(1, keepdims=True), truth_m.mean(1, keepdims=True)
    centred_m, target_m = joints_m - joints_mean_m, truth_m - truth_mean_m
    u_T33, singular_T3, vt_T33 = np.linalg.svd(centred_m.swapaxes(-1, -2) @ target_m)
    # The sign of the last axis keeps it a rotation: a mirrored pose is an error, not an alignment.
    sign_T3 = np.ones_like(singular_T3)
    sign_T3[:, 2] = np.sign(np.linalg.det(u_T33 @ vt_T33))
    rotation_T33 = (u_T33 * sign_T3[:, None, :]) @ vt_T33
    spread_T = np.square(centred_m).sum((1, 2))
    scale_T = (singular_T3 * sign_T3).sum(-1) / np.maximum(spread_T, np.finfo(np.float64).tiny)
    return np.asarray(scale_T[:, None, None] * (centred_m @ rotation_T33) + truth_mean_m)


def _counted(values: NDArray[np.float64], counted: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    kept = values.reshape(-1) if counted is None else values[counted]
    if kept.size == 0:
        raise ValueError(f"no joint is counted out of {values.size}, wanted at least one")
    return kept


def _check_same_shape(joints: Floats, truth: Floats, num_coordinates: int) -> None:
    if joints.shape != truth.shape or joints.ndim != 3 or joints.shape[-1] != num_coordinates:
        raise ValueError(f"joints {joints.shape} and truth {truth.shape} must both be (T, J, {num_coordinates})")
