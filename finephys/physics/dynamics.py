"""Euler-Lagrange dynamics of the rod tree in the points' own coordinates, forward and backward in time.

Path:    PhysicsPose's core; knows nothing of networks
Solves:  M a = f + E^T (lambda o D)   with   D = E x   and   D . E a + |E v|^2 = 0 on each constraint        [1]
Letters: x, v, a, f (..., 16, 3) points, velocities, accelerations, forces; lambda (..., 16) multipliers, N/m
Units:   metre, second, kilogram, newton; float32 or float64

f is all that is applied, gravity (body.gravity_force) included by the caller; the constraints add their own tensions.
Eliminating a leaves S lambda = -(D . E M^-1 f + |E v|^2) with S = A o (D D^T), A = E M^-1 E^T: positive definite at
every pose, as the Schur product of a positive definite matrix with a Gram matrix without zeros on its diagonal. It is
the constrained form of M(q) q'' + C(q, q') q' + g = tau; what C is in minimal coordinates is |E v|^2 here.
[1] Lagrange's equations of the first kind.  Time step: variational Verlet, i.e. SHAKE (Ryckaert et al. 1977; Leimkuhler
    and Skeel 1994): symplectic and symmetric in time.  FinePhys (arXiv:2505.13437) predicts M; ours is derived.
"""

from typing import Any

import torch
from torch import Tensor

from finephys.physics.body import (
    CONSTRAINT_NAMES,
    NUM_CONSTRAINTS,
    NUM_POINTS,
    POINT_NAMES,
    STANDARD_GRAVITY,
    Body,
    center_of_mass,
    inertia,
)

MAX_NEWTON_STEPS = 25
# Newton stops when no squared length is off by more than this many rounding errors.
NEWTON_TOLERANCE_EPS = 64
# A constraint shorter than this (a tenth of a millimetre) has no direction worth pulling along.
SHORTEST_M = 1e-4
# Up to so many systems LAPACK solves one after the other; more are eliminated side by side. On one thread of a CPU
# forward_dynamics of 24 bodies takes 0.4 and 1.9 ms, of 256 the same, of 4,096 32 and 12 ms.
FEW_SYSTEMS = 256


def forward_dynamics(body: Body, x: Tensor, v: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """Accelerations under forces: (a (..., 16, 3) m/s^2, multiplier (..., 16) N/m; positive pulls the ends together).

    x, v, f (..., 16, 3), broadcast against each other; v is taken to keep the lengths (D . E v = 0).
    Raises ValueError, naming batch element and frame, for a constraint without length or for NaN.
    """
    body = body.to(x)
    shape = torch.broadcast_shapes(x.shape, v.shape, f.shape)
    along = body.incidence @ _batch_last(x, shape)
    free = body.inverse_mass @ _batch_last(f, shape)
    stretch = _dot(along, body.incidence @ free) + _dot(*(2 * [body.incidence @ _batch_last(v, shape)]))
    multiplier = -_solve_tensions(body, x.expand(shape), along, stretch)
    a = free + body.constraint_response @ _scaled(along, multiplier)
    return _batch_first(a, shape), multiplier.T.reshape(shape[:-1])


def inverse_dynamics(body: Body, x: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """The force (..., 16, 3) in newtons under which the body accelerates by a, less any part that only the rods feel.

    x, v, a (..., 16, 3). If a keeps the lengths (D . E a = -|E v|^2, as forward_dynamics returns it) the result has no
    component along the constraint forces, which forward_dynamics would discard: inverse(forward(f)) = f for such f, and
    forward(inverse(a)) = a.
    Raises ValueError as forward_dynamics does.
    """
    body = body.to(x)
    shape = torch.broadcast_shapes(x.shape, v.shape, a.shape)
    along = body.incidence @ _batch_last(x, shape)
    centripetal = _dot(*(2 * [body.incidence @ _batch_last(v, shape)]))
    multiplier = -_solve_tensions(body, x.expand(shape), along, centripetal)
    force = body.mass @ _batch_last(a, shape) - body.incidence.T @ _scaled(along, multiplier)
    return _batch_first(force, shape)


def verlet_step(body: Body, x_now: Tensor, x_previous: Tensor, f: Tensor, dt_s: float | Tensor) -> Tensor:
    """x_next (..., 16, 3): one variational step of dt_s seconds, x_next = 2 x_now - x_previous + dt^2 a.

    With x_next in the place of x_previous it is the step back in time, exactly. f (..., 16, 3) acts at x_now. Lengths
    of x_next are body.lengths_m. dt_s: a number, or (...) one per leading element. Differentiable in x_now, x_previous
    and f (through the solution, not through the iterations).
    Raises ValueError, naming batch element and frame, where the constraints find no solution.
    """
    body = body.to(x_now)
    dt_squared = torch.as_tensor(dt_s, dtype=x_now.dtype, device=x_now.device).square()[..., None, None]
    base = 2 * x_now - x_previous + dt_squared * (body.inverse_mass @ f)
    along = body.incidence @ x_now
    lengths_squared = body.lengths_m.square()
    tolerance = NEWTON_TOLERANCE_EPS * torch.finfo(x_now.dtype).eps

    def residual_and_jacobian(tension: Tensor) -> tuple[Tensor, Tensor]:
        along_next = body.incidence @ (base + body.constraint_response @ (tension[..., None] * along))
        residual = 0.5 * (along_next.square().sum(-1) - lengths_squared)
        return residual, body.constraint_coupling * (along_next @ along.transpose(-1, -2))

    # `tension` is dt^2 lambda, so that nothing here scales with the time step.
    with torch.no_grad():
        tension = torch.zeros(base.shape[:-2] + along.shape[-2:-1], dtype=base.dtype, device=base.device)
        for _ in range(MAX_NEWTON_STEPS):
            residual, jacobian = residual_and_jacobian(tension)
            error = residual.abs() / lengths_squared
            if not bool((error > tolerance).any()) and bool(torch.isfinite(error).all()):
                break
            step, info = torch.linalg.solve_ex(jacobian, residual)
            # A singular element keeps NaN and is named below; the others still converge.
            tension = tension - torch.where((info == 0)[..., None], step, torch.nan)
        else:
            _refuse(~(error <= tolerance), "a time step found no solution for constraint", error)
    # One Newton step from the solution changes nothing but carries the exact derivatives (implicit function theorem).
    residual, jacobian = residual_and_jacobian(tension)
    tension = tension - torch.linalg.solve(jacobian, residual)
    x_next: Tensor = base + body.constraint_response @ (tension[..., None] * along)
    return x_next


def project_velocity(body: Body, x: Tensor, v: Tensor) -> Tensor:
    """The velocities nearest to v (least kinetic energy of the change) that keep the lengths; x, v (..., 16, 3)."""
    body = body.to(x)
    shape = torch.broadcast_shapes(x.shape, v.shape)
    along, velocity = body.incidence @ _batch_last(x, shape), _batch_last(v, shape)
    tension = _solve_tensions(body, x.expand(shape), along, _dot(along, body.incidence @ velocity))
    return _batch_first(velocity - body.constraint_response @ _scaled(along, tension), shape)


def internal_force(body: Body, x: Tensor, f: Tensor) -> Tensor:
    """The part of f (..., 16, 3) that changes neither momentum nor angular momentum: what muscles can do.

    Subtracts M times the rigid acceleration that f's resultant and moment about the centre of mass would give.
    """
    body = body.to(x)
    r = x - center_of_mass(body, x)[..., None, :]
    resultant = f.sum(-2, keepdim=True)
    spin = rigid_spin(body, x, torch.linalg.cross(r, f).sum(-2))
    rigid = resultant / body.mass_kg + torch.linalg.cross(spin[..., None, :].expand_as(r), r)
    internal: Tensor = f - body.mass @ rigid
    return internal


def rigid_spin(body: Body, x: Tensor, moment: Tensor) -> Tensor:
    """I^-1 moment (..., 3): how a moment about the centre of mass spins up (rad/s^2) the body if it were rigid.

    Raises ValueError, naming batch element and frame, where all points lie on one line.
    """
    spin: Tensor
    spin, info = torch.linalg.solve_ex(inertia(body, x), moment)
    if bool((info != 0).any()):
        length = (body.to(x).incidence @ x).norm(dim=-1)
        _refuse(
            (info != 0)[..., None].expand(length.shape), "the body has no inertia about some axis; length of", length
        )
    return spin


def contact_force(
    body: Body, normal: Tensor, tangent: Tensor, up: Tensor, contact_probability: Tensor, friction: float = 0.8
) -> Tensor:
    """Forces (..., 16, 3) in newtons of a floor that pushes, never pulls, inside its friction cone.

    normal (..., 16): softplus of it is the push in body weights. tangent (..., 16, 3): direction and, saturating, the
    share of the friction limit that is used; only its horizontal part counts. up (..., 3): unit. contact_probability
    (...): 0 in flight, where the result is exactly zero. friction: 0.8, dry feet or shoes on a floor exercise carpet.
    """
    up = up[..., None, :]
    push = body.mass_kg * STANDARD_GRAVITY * torch.nn.functional.softplus(normal) * contact_probability[..., None]
    tangent = tangent - (tangent * up).sum(-1, keepdim=True) * up
    # |u| / sqrt(1 + |u|^2) < 1: small demands pass unchanged, none leaves the cone.
    tangent = tangent / (1 + tangent.square().sum(-1, keepdim=True)).sqrt()
    return push[..., None] * (up + friction * tangent)


# --- many small systems at once
#
# A batch of N bodies lies with N last: (16, 3 N) for points, (16, N) for scalars of constraints. One constant matrix
# times all points is then one product, and elimination runs down a column of all N systems in one vector instruction
# after the other, where a library call for each 16x16 system spends most of its time on entering and leaving. Of few
# systems, it is the instructions of which there are too many.


def _batch_last(x: Tensor, shape: torch.Size) -> Tensor:
    """(..., 16, 3), expanded to `shape`, as (16, 3 N)."""
    return x.expand(shape).reshape(-1, 3 * NUM_POINTS).T.reshape(NUM_POINTS, -1)


def _batch_first(x: Tensor, shape: torch.Size) -> Tensor:
    return x.reshape(3 * NUM_POINTS, -1).T.reshape(shape)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Scalar products (16, N) of vectors (16, 3 N)."""
    a, b = (vectors.view(NUM_CONSTRAINTS, 3, -1).unbind(1) for vectors in (left, right))
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def _scaled(along: Tensor, factor: Tensor) -> Tensor:
    """Vectors (16, 3 N) times scalars (16, N)."""
    return (along.view(NUM_CONSTRAINTS, 3, -1) * factor[:, None]).view(NUM_CONSTRAINTS, -1)


class _TensionSolve(torch.autograd.Function):
    """lambda (16, N) with S lambda = b for S = A o (D D^T); differentiable in D (16, 3 N) and b (16, N), also twice.

    With y = S^-1 g for a gradient g:  g_b = y,  g_D = -(y o A (lambda o D) + lambda o A (y o D)).
    """

    @staticmethod
    def forward(ctx: Any, coupling: Tensor, along: Tensor, right_side: Tensor) -> Tensor:
        factor = _factorise(coupling, along)
        solution = _substitute(factor, right_side)
        ctx.save_for_backward(coupling, along, factor, solution)
        return solution

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        coupling, along, factor, solution = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A gradient of the gradient is wanted: go through what has one.
            adjoint: Tensor = _TensionSolve.apply(coupling, along, gradient)
        else:
            adjoint = _substitute(factor, gradient)
        of_along = _scaled(coupling @ _scaled(along, solution), adjoint)
        of_along = of_along + _scaled(coupling @ _scaled(along, adjoint), solution)
        return None, -of_along, adjoint


def _factorise(coupling: Tensor, along: Tensor) -> Tensor:
    """A factor of S = A o (D D^T), for _substitute.

    Up to FEW_SYSTEMS: Cholesky's (N, 16, 16), not a number where S is not positive definite.  More: L D L^T
    (16, 16, N), D on the diagonal, L below it; above it is rubbish.
    """
    vectors = along.view(NUM_CONSTRAINTS, 3, -1)
    if vectors.shape[-1] <= FEW_SYSTEMS:
        vectors = vectors.permute(2, 0, 1)
        factor, info = torch.linalg.cholesky_ex(coupling * (vectors @ vectors.transpose(-1, -2)))
        return torch.where(info[:, None, None] == 0, factor, torch.nan)
    return _eliminate_squares(coupling, vectors) if vectors.is_cuda else _eliminate_triangle(coupling, vectors)


def _eliminate_triangle(coupling: Tensor, vectors: Tensor) -> Tensor:
    """L D L^T column by column of what is left below the diagonal."""
    factor = vectors.new_empty(NUM_CONSTRAINTS, NUM_CONSTRAINTS, vectors.shape[-1])
    for column in range(NUM_CONSTRAINTS):
        gram = torch.mul(vectors[column:, 0], vectors[column, 0], out=factor[column:, column])
        gram.addcmul_(vectors[column:, 1], vectors[column, 1]).addcmul_(vectors[column:, 2], vectors[column, 2])
        gram *= coupling[column:, column, None]
    for column in range(NUM_CONSTRAINTS - 1):
        below = factor[column + 1 :, column]
        scaled = below / factor[column, column]
        for other in range(column + 1, NUM_CONSTRAINTS):
            offset = other - column - 1
            factor[other:, other].addcmul_(scaled[offset:], below[offset], value=-1)
        below.copy_(scaled)
    return factor


def _eliminate_squares(coupling: Tensor, vectors: Tensor) -> Tensor:
    """The same by whole squares: starting an instruction costs a GPU more than what lies above the diagonal."""
    factor = vectors[:, None, 0] * vectors[None, :, 0]
    factor.addcmul_(vectors[:, None, 1], vectors[None, :, 1]).addcmul_(vectors[:, None, 2], vectors[None, :, 2])
    factor *= coupling[:, :, None]
    for column in range(NUM_CONSTRAINTS - 1):
        below = factor[column + 1 :, column]
        scaled = below / factor[column, column]
        factor[column + 1 :, column + 1 :].addcmul_(scaled[:, None], below[None], value=-1)
        below.copy_(scaled)
    return factor


def _substitute(factor: Tensor, right_side: Tensor) -> Tensor:
    """S^-1 right_side, (16, N), for the factor that _factorise gave."""
    if right_side.shape[-1] <= FEW_SYSTEMS:
        return torch.cholesky_solve(right_side.T[..., None], factor)[..., 0].T
    solution = right_side.clone()
    for row in range(NUM_CONSTRAINTS - 1):
        solution[row + 1 :].addcmul_(factor[row + 1 :, row], solution[row], value=-1)
    solution /= factor.diagonal().T
    for row in range(NUM_CONSTRAINTS - 2, -1, -1):
        solution[row] -= (factor[row + 1 :, row] * solution[row + 1 :]).sum(0)
    return solution


def _solve_tensions(body: Body, x: Tensor, along: Tensor, right_side: Tensor) -> Tensor:
    """S^-1 right_side, (16, N); along (16, 3 N) and right_side (16, N) of the points x (..., 16, 3)."""
    solution: Tensor = _TensionSolve.apply(body.constraint_coupling, along, right_side)
    length_squared = _dot(along.detach(), along.detach())
    # One reduction on the way through; what exactly is wrong is looked for only if something is.
    if not bool(torch.isfinite(solution).all() & (length_squared.min() > SHORTEST_M**2)):
        places = x.shape[:-1]
        lengths = length_squared.T.reshape(places)
        _refuse(~torch.isfinite(x).all(-1), "x is not finite at point", x.sum(-1), POINT_NAMES)
        _refuse(lengths <= SHORTEST_M**2, "no length in metres at constraint", lengths.sqrt())
        tensions = solution.T.reshape(places)
        _refuse(~torch.isfinite(tensions), "velocities or forces are not finite, tension of constraint", tensions)
        raise ValueError("the constraints' matrix is singular")
    return solution


def _refuse(bad: Tensor, what: str, value: Tensor, names: tuple[str, ...] = CONSTRAINT_NAMES) -> None:
    """Raise ValueError for the first true element of bad (..., 16), if any, saying what, which, where and the value."""
    if not bool(bad.any()):
        return
    *element, index = bad.nonzero()[0].tolist()
    levels = ("batch element", "frame", "index", "index")
    place = ", ".join(f"{level} {number}" for level, number in zip(levels, element, strict=False))
    seen = value.expand(bad.shape)[(*element, index)].item()
    raise ValueError(f"{what} {names[index]}, {place or 'the only element'}: seen {seen:.3g}")
