"""The body that ships: Anny's female body over the shapes that gymnasts have, in one small file.

Path:    Shape -> vertices and bone heads at rest
Letters: V = 13,718 vertices, N = 104 bones, K directions of change
Units:   metre;  Frames: world, y up, the body faces +x with its right hand at +z, arms raised sideways

Anny [1] blends its shapes multilinearly between keys of its parameters. Over the narrow range that we use a multilinear
function of the parameters, with a kink where a key lies inside, along 20 directions is Anny to a quarter of a
millimetre (finephys/gymnast/bake.py fits and checks it). So nothing but the baking needs Anny, whose first start takes
a minute and leaves 800 MB in a cache.
[1] https://github.com/naver/anny (Apache-2.0, shape data CC0).
"""

import functools
import itertools
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

FLOATS = NDArray[np.float64]

BODY_FILE = Path(__file__).parents[1] / "assets" / "body.safetensors"

# Anny has keys at weight 0.5 and at age 2/3 (adult).
_WEIGHT_KEY, _AGE_KEY = 0.5, 2 / 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Anny's shape parameters of a gymnast; age is in Anny's terms (1/3 a child, 2/3 an adult), the rest 0..1.

    scale: the whole body made smaller or larger, because gymnasts are smaller than the people whom Anny knows.
    """

    age: float = 0.6
    muscle: float = 0.7
    weight: float = 0.4
    height: float = 0.4
    proportions: float = 0.7
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, (low, high) in SHAPE_RANGE.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted {low}..{high}, the bodies that were baked")
        if not SCALE_RANGE[0] <= self.scale <= SCALE_RANGE[1]:
            raise ValueError(f"scale is {self.scale}, wanted {SCALE_RANGE[0]}..{SCALE_RANGE[1]}")

    @classmethod
    def of_height(cls, height_m: float) -> "Shape":
        """An average gymnast's body of this height. Raises ValueError outside 1.35..1.70 m."""
        if not HEIGHT_RANGE_M[0] <= height_m <= HEIGHT_RANGE_M[1]:
            raise ValueError(f"height_m is {height_m}, wanted {HEIGHT_RANGE_M[0]}..{HEIGHT_RANGE_M[1]}")
        return cls(scale=height_m / _AVERAGE_HEIGHT_M)


# Of elite gymnasts in women's floor exercise.
HEIGHT_RANGE_M = (1.35, 1.70)
SCALE_RANGE = (0.8, 1.1)
# Standing height of Shape(), measured.
_AVERAGE_HEIGHT_M = 1.5793

# 1.45 to 1.75 m tall at scale 1, lean to sturdy.
SHAPE_RANGE = {
    "age": (0.56, 0.67),
    "muscle": (0.55, 0.9),
    "weight": (0.3, 0.55),
    "height": (0.3, 0.5),
    "proportions": (0.5, 0.9),
}


@dataclass(frozen=True, kw_only=True)
class BodyModel:
    """mean_m ((V+N)*3,) float32; directions (K, (V+N)*3) float16; coefficients (features, K) float32; faces (F,3);
    skin_bones, skin_weights (V,9): which bones move a vertex and how much; bone_parents (N,), -1 for the root."""

    mean_m: NDArray[np.float32]
    directions: NDArray[np.float16]
    coefficients: NDArray[np.float32]
    faces: NDArray[np.uint16]
    skin_bones: NDArray[np.uint8]
    skin_weights: NDArray[np.float16]
    bone_parents: NDArray[np.int16]
    bone_names: tuple[str, ...]

    def rest(self, shape: Shape) -> tuple[FLOATS, FLOATS]:
        """Vertices (V,3) and bone heads (N,3) at rest."""
        change = shape_features(shape) @ self.coefficients
        points_m = (self.mean_m + change @ self.directions.astype(np.float64)).reshape(-1, 3)
        num_vertices = len(self.skin_bones)
        return points_m[:num_vertices], points_m[num_vertices:]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; a reader sees all of it or nothing."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "bone_names"}
        temporary = f"{os.fspath(path)}.writing"
        save_file(arrays, temporary, metadata={"bone_names": json.dumps(self.bone_names)})
        os.replace(temporary, path)


@functools.cache
def load_body_model() -> BodyModel:
    """The model that ships."""
    with safe_open(BODY_FILE, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return BodyModel(**arrays, bone_names=tuple(json.loads(file.metadata()["bone_names"])))


def shape_features(shape: Shape) -> FLOATS:
    """The functions of the parameters of which the body is a linear one: their products, and the kinks."""
    # Each parameter from -1 to 1, which keeps the fit well conditioned.
    scaled = {name: (2 * getattr(shape, name) - low - high) / (high - low) for name, (low, high) in SHAPE_RANGE.items()}
    past_weight_key = max(shape.weight - _WEIGHT_KEY, 0.0) / (SHAPE_RANGE["weight"][1] - _WEIGHT_KEY)
    past_age_key = max(shape.age - _AGE_KEY, 0.0) / (SHAPE_RANGE["age"][1] - _AGE_KEY)
    others = [scaled[name] for name in SHAPE_RANGE if name != "weight"]
    kinked = past_weight_key * _products(others)
    return np.concatenate([_products(list(scaled.values())), kinked, [past_age_key]])


def _products(values: list[float]) -> FLOATS:
    """The products of all subsets of the values, the empty one included."""
    subsets = itertools.chain.from_iterable(itertools.combinations(values, count) for count in range(len(values) + 1))
    return np.array([np.prod(subset) for subset in subsets])
