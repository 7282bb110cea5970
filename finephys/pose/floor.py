"""Which way is down, given that the floor is level: gravity as lifted, corrected by where the feet stand.

Path:    Pose3D -> gravity, in a camera that stands still or whose motion was taken out
Letters: T frames
Units:   metre, radian
Frames:  camera of the middle frame

The lifter reads gravity off bodies, half a second at a time. Seen with gravity that is tilted, who walks towards the
camera walks up a ramp: the lower ankle's height changes, robustly fitted over the clip, and the floor that is level
tilts gravity back, as far as what the lifter expects of its own error lets it. On clips that train the lifter it took
the mean error of captured motions from 2.78 to 2.51 degrees and that of aerials from 2.18 to 1.96, which chose the
constants (once, by hand; with wrists too, or with all joints, 2.70).
"""

import numpy as np
from numpy.typing import NDArray

from finephys.pose.lifting import Pose3D
from finephys.skeleton import JOINT_NAMES

_ANKLES = [JOINT_NAMES.index("right_ankle"), JOINT_NAMES.index("left_ankle")]
# How far the lower ankle is off its usual height while it is on the floor, and for how long it then stays off.
_HEIGHT_NOISE_M = 0.05
_NOISE_TIME_S = 0.3
# The lifter's errors are a fifth larger than it expects (assets/pipeline.md).
_SPREAD_FACTOR = 1.2
# Where the floor is looked for at first: this share of the lower ankle's heights lies below.
_LOW_SHARE = 0.1
_NUM_STEPS = 15


def level_floor(lifted: Pose3D, fps: float) -> NDArray[np.float32]:
    """Gravity (3,) float32 unit, down; the lifted one where nothing is known of its error.

    lifted: in the frame of one camera for all frames. Iterated least squares over two small tilts and the floor's
    height, each frame with Geman and McClure's weight: ankles in the air count for nothing.
    """
    down = lifted.gravity_cam.astype(np.float64)
    if lifted.gravity_spread_deg is None:
        return lifted.gravity_cam
    spread = _SPREAD_FACTOR * np.radians(lifted.gravity_spread_deg)
    ankles_m = lifted.joints_cam_m[:, _ANKLES].astype(np.float64)
    # Two directions on the floor.
    level_23 = np.linalg.svd(down[None])[2][1:]
    certainty = 1 / (_HEIGHT_NOISE_M**2 * max(1.0, _NOISE_TIME_S * fps))
    tilt, floor_m = np.zeros(2), None
    for _ in range(_NUM_STEPS):
        heights_m = ankles_m @ (tilt @ level_23 - down)
        height_m = heights_m.min(1)
        if floor_m is None:
            floor_m = np.quantile(height_m, _LOW_SHARE)
        weight_T = certainty * (1 + ((height_m - floor_m) / _HEIGHT_NOISE_M) ** 2) ** -2
        point_m = ankles_m[np.arange(len(ankles_m)), heights_m.argmin(1)]
        # Its height is point @ (tilt @ level - down), and is to be the floor's: linear in the tilts and the floor.
        rows_T3 = np.column_stack([point_m @ level_23.T, -np.ones(len(point_m))])
        information = rows_T3.T @ (weight_T[:, None] * rows_T3) + np.diag([spread**-2, spread**-2, 1e-9])
        *tilts, floor_m = np.linalg.solve(information, rows_T3.T @ (weight_T * (point_m @ down)))
        tilt = np.array(tilts)
    down = down - tilt @ level_23
    gravity: NDArray[np.float32] = (down / np.linalg.norm(down)).astype(np.float32)
    return gravity
