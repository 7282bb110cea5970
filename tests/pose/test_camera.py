import torch

from finephys.pose.camera import nominal_intrinsics, project, unproject

INTRINSICS = torch.tensor([[210.0, 0.0, 70.0], [0.0, 190.0, 40.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_a_point_lands_where_the_pinhole_equation_says() -> None:
    joints_px = project(torch.tensor([[0.5, -0.25, 2.5]], dtype=torch.float64), INTRINSICS)
    torch.testing.assert_close(joints_px, torch.tensor([[210 * 0.2 + 70, 40 - 190 * 0.1]], dtype=torch.float64))


def test_unproject_undoes_project_over_leading_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    joints_m = torch.randn(4, 5, 17, 3, dtype=torch.float64, generator=generator)
    joints_m[..., 2] = 2 + joints_m[..., 2].abs()
    intrinsics = INTRINSICS.expand(4, 1, 3, 3)
    rays = unproject(project(joints_m, intrinsics), intrinsics)
    torch.testing.assert_close(rays, joints_m[..., :2] / joints_m[..., 2:])


def test_gradients_are_right_in_front_and_finite_behind_the_camera() -> None:
    joints_m = torch.tensor([[0.3, 0.1, 2.0], [-0.4, 0.2, 3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda joints: project(joints, INTRINSICS), joints_m)
    behind_m = torch.tensor([[0.3, 0.1, -1.0]], requires_grad=True)
    project(behind_m, INTRINSICS.float()).sum().backward()
    assert behind_m.grad is not None
    assert behind_m.grad.isfinite().all()


def test_nominal_intrinsics_centre_the_image_and_follow_the_longer_side() -> None:
    intrinsics = nominal_intrinsics(height=90, width=160)
    assert intrinsics.tolist() == [[240.0, 0.0, 80.0], [0.0, 240.0, 45.0], [0.0, 0.0, 1.0]]
