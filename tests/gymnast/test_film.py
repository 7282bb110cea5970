"""Filming: joints lie where the pictures show them, cameras keep the gymnast in view, and splits do not share any."""

import numpy as np
import pytest

from finephys.gymnast.body import performer_mesh
from finephys.gymnast.cameras import fit_camera, is_static, pan_cameras, random_bearing, to_camera, to_pixels
from finephys.gymnast.choreography import choreograph
from finephys.gymnast.film import film
from finephys.gymnast.motions import performers
from finephys.gymnast.render import Renderer, joint_visibility, vertex_colours

SIZE = 128


@pytest.fixture(scope="module")
def performer():
    return performers("train", 0)[0]


@pytest.fixture(scope="module")
def leap(performer):
    """A switch leap: it travels."""
    return choreograph(10, shape=performer.shape, seed=0).motion


@pytest.fixture(scope="module")
def posed(leap, performer):
    return performer_mesh(leap, performer)


def test_joints_lie_inside_the_silhouette_and_under_its_surface(performer, leap, posed) -> None:
    joints_m, mesh = posed
    cameras = pan_cameras(mesh, SIZE, "train", np.random.default_rng(0), zooms=True)
    renderer = Renderer(performer, "blue", cameras, SIZE, leap.root_m[:, [0, 2]].mean(0))
    num_visible = []
    for frame in range(0, len(joints_m), 6):
        picture, depth_m = renderer.draw(mesh.vertices_m[frame], mesh.normals[frame], cameras[frame])
        assert picture.shape == (SIZE, SIZE, 3)
        column, row = np.floor(2 * to_pixels(joints_m[frame], cameras[frame])).astype(int).T
        depth_there_m = depth_m[row, column]
        assert (depth_there_m < 50).all(), "a joint lies outside the body's silhouette"
        assert (to_camera(joints_m[frame], cameras[frame])[:, 2] > depth_there_m - 0.01).all()
        num_visible.append(joint_visibility(joints_m[frame], depth_m, cameras[frame]).sum())
    assert 8 < np.mean(num_visible) < 17


@pytest.mark.parametrize("zooms", [False, True])
def test_a_panning_camera_keeps_her_in_the_frame_from_one_place(posed, zooms: bool) -> None:
    _, mesh = posed
    for seed in range(3):
        cameras = pan_cameras(mesh, SIZE, "train", np.random.default_rng(seed), zooms=zooms)
        spans = []
        for camera, vertices_m in zip(cameras, mesh.vertices_m, strict=True):
            pixels = to_pixels(vertices_m, camera)
            assert pixels.min() > 0
            assert pixels.max() < SIZE
            spans.append(np.ptp(pixels, axis=0).max() / SIZE)
        positions_m = np.stack([camera.position_m for camera in cameras])
        assert np.ptp(positions_m, axis=0).max() < 1e-9
        focal_px = [camera.intrinsics[0, 0] for camera in cameras]
        assert (np.ptp(focal_px) > 0) == zooms
        assert not is_static(cameras)
        # Smooth as an operator's hand: never more than 3 degrees from frame to frame, and turning at all.
        forward = np.stack([camera.rotation[2] for camera in cameras])
        turns = np.degrees(np.arccos(np.clip((forward[1:] * forward[:-1]).sum(-1), -1, 1)))
        assert 0.05 < turns.max() < 3
        # Large enough to see: about half the frame high when she stands.
        assert np.median(spans) > 0.35


def test_splits_share_no_bearing(posed) -> None:
    _, mesh = posed
    for split, low, high in (("train", 1, 35), ("test", 36, 45)):
        rng = np.random.default_rng(0)
        drawn = [np.degrees(random_bearing(split, rng)) % 45 for _ in range(500)]
        assert low <= min(drawn) < low + 1 < high - 1 < max(drawn) <= high
        still, _ = fit_camera(mesh, SIZE, split, rng, num_tries=3)
        panning = pan_cameras(mesh, SIZE, split, rng, zooms=False)
        assert low <= _bearing_deg(still.rotation[2]) % 45 <= high
        # A panning one looks along its bearing from where it stands to the middle of what she does.
        middle_m = np.mean([(v.min(0) + v.max(0)) / 2 for v in mesh.vertices_m], axis=0)
        assert low - 1 <= _bearing_deg(middle_m - panning[0].position_m) % 45 <= high + 1


def _bearing_deg(direction: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(direction[2], direction[0])))


def test_the_films_truth_is_of_its_pictures(performer, leap) -> None:
    for seed in range(3):
        filmed = film(leap, performer, "grey", SIZE, "train", np.random.default_rng(seed))
        homogeneous = np.einsum("tab,tjb->tja", filmed.intrinsics, filmed.joints_cam_m)
        np.testing.assert_allclose(homogeneous[..., :2] / homogeneous[..., 2:], filmed.joints_px, atol=1e-2)
        # Whatever the camera does, the world is the same.
        world_m = np.einsum("tba,tjb->tja", filmed.rotation, filmed.joints_cam_m - filmed.translation[:, None])
        np.testing.assert_allclose(world_m[:, 0], leap.root_m, atol=0.02)
        assert filmed.is_static == (np.ptp(filmed.rotation, axis=0).max() == 0)
        # The leotard is where the trunk is: the truth belongs to the picture and not to a neighbour of it.
        column, row = np.floor(filmed.joints_px[:, 7]).astype(int).T
        seen = filmed.visible[:, 7] > 0
        at_spine = filmed.frames[np.arange(len(row)), row, column][seen] / 255
        leotard = vertex_colours(performer).astype(float)
        nearest = np.abs(at_spine[:, None] - leotard[None, ::200]).sum(-1).min(1)
        assert np.median(nearest) < 0.75


def test_blur_smears_what_moves_and_nothing_else(performer, leap, monkeypatch) -> None:
    import finephys.gymnast.film as module

    def filmed(moments: int) -> np.ndarray:
        monkeypatch.setattr(module, "_MOMENTS", (moments,))
        monkeypatch.setattr(module, "_SHUTTER_S", (1 / 60, 1 / 60))
        return module.film(leap, performer, "grey", SIZE, "train", np.random.default_rng(3)).frames.astype(int)

    sharp, blurred = filmed(1), filmed(3)
    change = np.abs(sharp - blurred).max(-1)
    assert (change > 20).any()
    # Far from the body the hall is the same.
    assert (change[:, :6] <= 1).mean() > 0.9


def test_looks_are_painted(performer) -> None:
    from dataclasses import replace

    plain = vertex_colours(replace(performer, leotard="red", trim=None, cap=None))
    for changed in ({"trim": "sleeves"}, {"trim": "belt"}, {"cap": "blue"}):
        painted = vertex_colours(replace(performer, leotard="red", **{"trim": None, "cap": None} | changed))
        share = (painted != plain).any(-1).mean()
        assert 0.005 < share < 0.4, changed
