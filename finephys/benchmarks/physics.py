"""How fast the dynamics is, beside the engines that the field trusts and beside what it serves.

Path:    random states of the rod tree -> forward_dynamics
Letters: B = 4096 bodies
Units:   ratios of medians of the processor's time; one thread, float64

forward_over_aba, forward_over_mj_forward   forward_dynamics of B bodies at once over B calls of Pinocchio's aba and of
    MuJoCo's mj_forward on the same tree, each call from Python, as the engines' own users make them. Left out, which
    stderr says, where the two are not installed.
forward_and_backward_over_forward           with the gradients in positions, velocities and forces, over without.
phys_net_over_unet_pass                     all of Phys-Net on a clip of 24 frames over one pass of the shipped UNet on
    16 frames, both in float32 and without gradients.
cuda_over_one_cpu_thread                    bodies a second on a GPU over those on one thread, where there is a GPU.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import UNetMotionModel

from finephys.evaluation.figures import Figure
from finephys.physics.body import Body
from finephys.physics.dynamics import forward_dynamics
from finephys.physics.phys_net import PhysNet

NUM_BODIES = 4096
NUM_CLIP_FRAMES, NUM_UNET_FRAMES = 24, 16
NUM_ROUNDS = 15
PIPELINE = Path(__file__).parents[1] / "assets" / "pipeline"


def measure() -> list[Figure]:
    """The figures, in about half a minute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = [_against_unet()]
        missing = [name for name in ("mujoco", "pinocchio") if importlib.util.find_spec(name) is None]
        if missing:
            print(f"finephys: {missing[0]} is not installed: nothing to compare with", file=sys.stderr)
        else:
            figures = [*_against_engines(), *figures]
        if torch.cuda.is_available():
            figures.append(_against_one_thread())
        return figures
    finally:
        torch.set_num_threads(before)


def _against_engines() -> list[Figure]:
    # Here: a machine with a GPU need not have them.
    import mujoco
    import pinocchio as pin

    from finephys.benchmarks.engines import MuJoCo, Pinocchio

    body = Body.from_anthropometry(mass_kg=50.0, height_m=1.6)
    x, v, f = _states()
    watched = [one.clone().requires_grad_() for one in (x, v, f)]
    mujoco_tree, pinocchio_tree = MuJoCo(body), Pinocchio(body)
    rng = np.random.default_rng(0)
    q = np.concatenate([rng.normal(size=3), [1.0, 0.0, 0.0, 0.0], rng.uniform(-1, 1, mujoco_tree.num_dof - 6)])
    qd, torque = rng.normal(size=mujoco_tree.num_dof), rng.normal(size=mujoco_tree.num_dof)
    mujoco_tree.set(q, qd)
    pinocchio_tree.set(q, qd)

    def ours() -> None:
        forward_dynamics(body, x, v, f)

    def with_gradients() -> None:
        accelerations, _ = forward_dynamics(body, *watched)
        torch.autograd.grad(accelerations.sum(), watched)

    def aba() -> None:
        for _ in range(NUM_BODIES):
            pin.aba(pinocchio_tree.model, pinocchio_tree.data, pinocchio_tree.q, pinocchio_tree.qd, torque)

    def mj_forward() -> None:
        for _ in range(NUM_BODIES):
            mujoco.mj_forward(mujoco_tree.model, mujoco_tree.data)

    ours_s, gradients_s, aba_s, mujoco_s = _medians_s(ours, with_gradients, aba, mj_forward)
    return [
        Figure(name="forward_over_aba", value=ours_s / aba_s, at_most=0.7),
        Figure(name="forward_over_mj_forward", value=ours_s / mujoco_s, at_most=0.7),
        Figure(name="forward_and_backward_over_forward", value=gradients_s / ours_s, at_most=3.0),
        Figure(name="forward_microseconds", value=ours_s / NUM_BODIES * 1e6),
        Figure(name="aba_microseconds", value=aba_s / NUM_BODIES * 1e6),
        Figure(name="mj_forward_microseconds", value=mujoco_s / NUM_BODIES * 1e6),
    ]


def _against_unet() -> Figure:
    unet = UNetMotionModel.from_pretrained(PIPELINE / "unet", torch_dtype=torch.float32).eval()
    phys_net = PhysNet.from_pretrained(PIPELINE / "phys_net", torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    side = unet.config.sample_size
    noisy = torch.randn(1, unet.config.in_channels, NUM_UNET_FRAMES, side, side, generator=generator)
    text = torch.randn(NUM_UNET_FRAMES, 8, unet.config.cross_attention_dim, generator=generator)
    joints_m = torch.randn(1, NUM_CLIP_FRAMES, 17, 3, generator=generator).cumsum(1) * 0.01
    joints_m = joints_m + torch.randn(1, 1, 17, 3, generator=generator) * 0.4 + torch.tensor([0.0, 0.0, 4.0])
    intrinsics = torch.tensor([[[192.0, 0.0, 64.0], [0.0, 192.0, 64.0], [0.0, 0.0, 1.0]]])
    joints_px = (joints_m @ intrinsics.transpose(1, 2))[..., :2] / joints_m[..., 2:]
    clip = (
        joints_m,
        joints_px,
        torch.ones(1, NUM_CLIP_FRAMES, 17),
        intrinsics,
        torch.tensor([[0.0, 1.0, 0.0]]),
        torch.tensor([1 / 30]),
        torch.tensor([True]),
    )

    def one_pass() -> None:
        with torch.no_grad():
            unet(noisy, torch.tensor(500), encoder_hidden_states=text)

    def physics() -> None:
        with torch.no_grad():
            phys_net(*clip)

    physics_s, pass_s = _medians_s(physics, one_pass)
    return Figure(name="phys_net_over_unet_pass", value=physics_s / pass_s, at_most=0.05)


def _against_one_thread() -> Figure:
    body = Body.from_anthropometry(mass_kg=50.0, height_m=1.6)
    many = 32 * NUM_BODIES
    on_cpu, on_gpu = _states(), [one.cuda() for one in _states(many)]

    def gpu() -> None:
        forward_dynamics(body, *on_gpu)
        torch.cuda.synchronize()

    # Here the clock on the wall counts: the processor only waits.
    gpu_s, cpu_s = _medians_s(gpu, lambda: forward_dynamics(body, *on_cpu), clock=time.perf_counter)
    return Figure(name="cuda_over_one_cpu_thread", value=(many / gpu_s) / (NUM_BODIES / cpu_s), at_least=100.0)


def _states(num_bodies: int = NUM_BODIES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, v, f = (torch.randn(num_bodies, 16, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    return x, v, 100 * f


def _medians_s(*runs: Callable[[], object], clock: Callable[[], float] = time.process_time) -> list[float]:
    """The median duration of each, in turns, after one round to warm up: what disturbs one disturbs the others."""
    durations: list[list[float]] = [[] for _ in runs]
    for round_ in range(NUM_ROUNDS + 1):
        for run, seen in zip(runs, durations, strict=True):
            started = clock()
            run()
            if round_ > 0:
                seen.append(clock() - started)
    return [statistics.median(seen) for seen in durations]
