"""Fit the body that ships to Anny, and check it: python -m finephys.gymnast.bake

Path:    Anny -> finephys/assets/body.safetensors

Needed again only for another range of shapes. Wants `pip install --no-deps anny==0.6.2` (with the `synth` extra);
Anny's first start takes a minute and writes 800 MB under ANNY_CACHE_DIR (default ~/.cache/anny).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finephys.gymnast.body_model import BODY_FILE, SHAPE_RANGE, BodyModel, Shape, shape_features
from finephys.gymnast.motions import random_shape

NUM_DIRECTIONS = 20
_NUM_FITTED, _NUM_CHECKED = 250, 40
_MAX_ERROR_M = 3e-4

# Anny has x to its left, y backward, z up; the world x forward, y up, z to the right.
_WORLD_FROM_ANNY = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])


def main() -> None:
    """Fit, check, and replace the file. Raises ValueError where the fit is off by more than 0.3 mm anywhere."""
    import anny

    # Anny's own default body; its "smplx" topology would download non-commercial data and is never asked for.
    anny_model = anny.Anny(skinning_method="lbs")
    rng = np.random.default_rng(0)
    body = fit(anny_model, [random_shape(rng) for _ in range(_NUM_FITTED)])
    worst_m = max(_error_m(anny_model, body, random_shape(rng)) for _ in range(_NUM_CHECKED))
    if worst_m > _MAX_ERROR_M:
        raise ValueError(f"the fitted body is off by {1e3 * worst_m:.2f} mm, wanted {1e3 * _MAX_ERROR_M} mm at most")
    body.save(BODY_FILE)
    print(f"{BODY_FILE}: off by {1e3 * worst_m:.3f} mm at most over {_NUM_CHECKED} bodies that were not fitted")


def fit(anny_model: Any, shapes: list[Shape]) -> BodyModel:
    """Principal directions of these bodies, and their coefficients as least squares of the shape's features."""
    points_m = np.stack([_anny_points_m(anny_model, shape).reshape(-1) for shape in shapes])
    mean_m = points_m.mean(0)
    _, _, directions = np.linalg.svd(points_m - mean_m, full_matrices=False)
    directions = directions[:NUM_DIRECTIONS]
    features = np.stack([shape_features(shape) for shape in shapes])
    coefficients, *_ = np.linalg.lstsq(features, (points_m - mean_m) @ directions.T, rcond=None)
    return BodyModel(
        mean_m=mean_m.astype(np.float32),
        directions=directions.astype(np.float16),
        coefficients=coefficients.astype(np.float32),
        faces=anny_model.faces.numpy().astype(np.uint16),
        skin_bones=anny_model.vertex_bone_indices.numpy().astype(np.uint8),
        skin_weights=anny_model.vertex_bone_weights.numpy().astype(np.float16),
        bone_parents=np.array(anny_model.bone_parents, np.int16),
        bone_names=tuple(anny_model.bone_labels),
    )


def _error_m(anny_model: Any, body: BodyModel, shape: Shape) -> float:
    """The largest distance between a point of the fitted body and Anny's."""
    fitted_m = np.concatenate(body.rest(shape))
    return float(np.linalg.norm(fitted_m - _anny_points_m(anny_model, shape), axis=-1).max())


def _anny_points_m(anny_model: Any, shape: Shape) -> NDArray[np.float64]:
    """Anny's vertices and bone heads (V+N,3) at rest, in our axes."""
    import torch

    parameters = {"gender": 1.0, **{name: getattr(shape, name) for name in SHAPE_RANGE}}
    phenotype = {name: torch.tensor([value], dtype=anny_model.dtype) for name, value in parameters.items()}
    blend = anny_model.get_phenotype_blendshape_coefficients(**phenotype)
    vertices_m = anny_model.get_rest_vertices(blend)[0]
    heads_m = anny_model.template_bone_heads + torch.einsum("a,akc->kc", blend[0], anny_model.bone_heads_blendshapes)
    points_m: NDArray[np.float64] = torch.cat([vertices_m, heads_m]).numpy().astype(np.float64) @ _WORLD_FROM_ANNY.T
    return points_m


if __name__ == "__main__":
    main()
