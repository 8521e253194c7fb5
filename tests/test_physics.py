"""Operators: adjoints, closed forms against dense linear algebra, noise told from data."""

import math

import numpy as np
import pytest
import torch

from txmcorrect.errors import TxmError
from txmcorrect.physics import (
    MASKS,
    BlockMean,
    Blur,
    Chain,
    ChannelMix,
    Identity,
    Inpainting,
    MaskedFourier,
    Separable,
    bicubic,
    estimate_gaussian,
    estimate_poisson,
    fourier_mask,
    gaussian_kernel,
    inner,
    measured_kernel,
    open_blur,
    pseudo_inverse,
    separable_blur,
    solve,
    uniform_kernel,
)
from txmcorrect.physics.blur import blur_matrix

H, W = 12, 10
DOUBLE = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def lopsided_kernel():
    return torch.rand(5, 3, generator=rng(1), dtype=DOUBLE)


def profile(sigma):
    return gaussian_kernel(sigma, 7).double().sum(0)


def operators():
    """Name -> (operator, shape of the image)."""
    mask = (torch.rand(H, W, generator=rng(2)) > 0.3).double()
    fourier = {f: fourier_mask(f, (H, W), 3.0, 0.2, generator=rng(3)).double() for f in MASKS}
    return {
        "identity": (Identity(), (H, W)),
        "inpainting": (Inpainting(mask), (H, W)),
        "gaussian blur": (Blur(gaussian_kernel(1.2, 7).double(), (H, W)), (H, W)),
        "uniform blur": (Blur(uniform_kernel(3).double(), (H, W)), (H, W)),
        "turned blur": (Blur(gaussian_kernel((2.0, 0.7), 9, 0.5).double(), (H, W)), (H, W)),
        "measured blur": (Blur(lopsided_kernel(), (H, W)), (H, W)),
        "open blur": (open_blur(lopsided_kernel(), (H, W)), (H + 4, W + 2)),
        "separable blur": (separable_blur(profile(1.5), profile(0.6), (H, W)), (H, W)),
        "tall": (
            Separable(torch.rand(H + 3, H, generator=rng(5)).double(), torch.eye(W).double()),
            (H, W),
        ),
        "block mean": (BlockMean((3, 2)), (H, W)),
        "thick slices": (BlockMean((4, 1)), (H, W)),
        "bicubic": (_double(bicubic((H, W), (2, 2))), (H, W)),
        "blur then bin": (
            Chain(BlockMean((2, 2)), Blur(gaussian_kernel(1.0, 5).double(), (H, W))),
            (H, W),
        ),
        "channel mix": (
            ChannelMix(torch.tensor([[0.3, 0.6, 0.1], [1.0, -1.0, 0.5]]).double()),
            (H, W),
        ),
        **{f"fourier {name}": (MaskedFourier(m), (H, W)) for name, m in fourier.items()},
    }


def _double(separable):
    return Separable(separable.rows.double(), separable.columns.double())


OPERATORS = operators()


def image(name, b=2):
    shape = OPERATORS[name][1]
    return torch.randn(b, 3, *shape, generator=rng(7), dtype=DOUBLE)


def noise_like(y):
    g = rng(8)
    real = torch.randn(y.shape, generator=g, dtype=DOUBLE)
    return (
        torch.complex(real, torch.randn(y.shape, generator=g, dtype=DOUBLE))
        if y.is_complex()
        else real
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint(name):
    operator, _ = OPERATORS[name]
    x = image(name)
    y = noise_like(operator.A(x))
    torch.testing.assert_close(inner(operator.A(x), y), inner(x, operator.A_adjoint(y)))


@pytest.mark.parametrize("name", OPERATORS)
def test_items_are_independent(name):
    operator, _ = OPERATORS[name]
    x = image(name, b=3)
    torch.testing.assert_close(operator.A(x)[1:2], operator.A(x[1:2]))


@pytest.mark.parametrize("name", OPERATORS)
def test_solve_inverts_the_noisy_gram_matrix(name):
    operator, _ = OPERATORS[name]
    y = operator.A(image(name))
    rhs = y + 0.1 * noise_like(y) * (y != 0)
    r2 = torch.tensor([0.7, 2.0], dtype=DOUBLE).reshape(2, 1, 1, 1)
    z = solve(operator, 0.05, r2, rhs, iterations=300, rtol=1e-9)
    back = 0.05 * z + r2 * operator.A(operator.A_adjoint(z))
    torch.testing.assert_close(back, rhs, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_solve_takes_a_variance_per_pixel(name):
    operator, _ = OPERATORS[name]
    rhs = operator.A(image(name))
    s2 = 0.05 + 0.1 * rhs.abs()
    z = solve(operator, s2, 0.8, rhs, iterations=500, rtol=1e-9)
    back = s2 * z + 0.8 * operator.A(operator.A_adjoint(z))
    torch.testing.assert_close(back, rhs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [n for n in OPERATORS if hasattr(OPERATORS[n][0], "A_pinv")])
def test_pseudo_inverse_satisfies_penrose(name):
    operator, _ = OPERATORS[name]
    x = image(name)
    y = operator.A(x)
    least = pseudo_inverse(operator, y)
    torch.testing.assert_close(operator.A(least), y, atol=2e-3, rtol=0)
    assert (inner(least, least) <= inner(x, x) * (1 + 1e-9)).all()
    torch.testing.assert_close(
        pseudo_inverse(operator, operator.A(least)), least, atol=1e-6, rtol=0
    )


def test_pseudo_inverse_without_closed_form_explains_the_data():
    operator, _ = OPERATORS["blur then bin"]
    y = operator.A(image("blur then bin"))
    assert (operator.A(pseudo_inverse(operator, y)) - y).abs().max() < 0.05 * y.abs().max()


def test_noise_free_solve_ignores_what_cannot_be_measured():
    """With s2 = 0 the residual outside A's range is dropped, not blown up."""
    operator, _ = OPERATORS["inpainting"]
    z = solve(operator, 0.0, 2.0, torch.ones(1, 1, H, W, dtype=DOUBLE))
    torch.testing.assert_close(z, operator.mask.expand(1, 1, H, W) / 2)


@pytest.mark.parametrize(
    "sigma,angle", [((2.0, 2.0), 0.0), ((3.0, 1.0), 0.0), ((3.0, 1.0), math.pi / 3)]
)
def test_gaussian_kernel_has_the_asked_moments(sigma, angle):
    kernel = gaussian_kernel(sigma, 41, angle).double()
    axis = torch.arange(-20, 21, dtype=DOUBLE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    found = torch.tensor([[(kernel * a * b).sum() for b in (y, x)] for a in (y, x)])
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, s], [-s, c]])
    expected = turn.T @ torch.diag(torch.tensor(sigma) ** 2) @ turn
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0, check_dtype=False)


def test_blur_centres_and_orients_its_kernel():
    kernel = lopsided_kernel()
    point = torch.zeros(1, 1, H, W, dtype=DOUBLE)
    point[..., 6, 5] = 1
    found = Blur(kernel, (H, W)).A(point)
    torch.testing.assert_close(found[0, 0, 4:9, 4:7], kernel)


def test_open_blur_does_not_wrap_round():
    scene = torch.zeros(1, 1, H + 4, W + 2, dtype=DOUBLE)
    scene[..., 0, :] = 1  # beyond the frame's top, by the kernel's radius
    seen = open_blur(lopsided_kernel(), (H, W)).A(scene)
    assert seen[..., 0, :].min() > 0.1
    assert seen[..., 1:, :].abs().max() < 1e-12


def test_mirrored_blur_keeps_a_constant_and_a_narrow_axis():
    """The profile may be wider than the frame: it is mirrored more than once."""
    matrix = blur_matrix(3, profile(2.0))
    torch.testing.assert_close(matrix.sum(1), torch.ones(3, dtype=DOUBLE), atol=1e-6, rtol=0)


def test_measured_kernel_is_centred():
    spot = torch.zeros(10, 10)
    spot[6:9, 2:5] = 1.0
    kernel = measured_kernel(spot)
    assert kernel.shape == (9, 9)
    assert kernel[3:6, 3:6].sum() == pytest.approx(1.0)


def test_bicubic_agrees_with_torch_inside():
    x = torch.rand(1, 1, 64, 48, generator=rng(4))
    expected = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    # torch takes Keys' a = -0.5 when it antialiases
    found = bicubic((64, 48), (2, 2)).A(x)
    torch.testing.assert_close(found[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", MASKS)
@pytest.mark.parametrize("acceleration", [4.0, 8.0])
def test_masks_keep_what_they_promise(family, acceleration):
    mask = fourier_mask(family, (128, 96), acceleration, 0.06, generator=rng(9))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.mean() == pytest.approx(1 / acceleration, rel=0.2)
    assert mask[0, 0] == 1
    again = fourier_mask(family, (128, 96), acceleration, 0.06, generator=rng(9))
    torch.testing.assert_close(mask, again)
    if family.endswith("1d"):
        assert (mask == mask[:1]).all()


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_gaussian_noise_is_told_from_the_data(sigma):
    frames = _sample_frames() + sigma * torch.randn(4, 128, 128, generator=rng(1))
    assert math.sqrt(estimate_gaussian(frames).floor) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("counts", [300.0, 5000.0])
def test_poisson_noise_is_told_from_the_data(counts):
    clean = _sample_frames()
    frames = torch.poisson(clean * counts, generator=rng(2)) / counts
    noise = estimate_poisson(frames)
    expected = clean / counts
    torch.testing.assert_close(noise.variance(clean).mean(), expected.mean(), rtol=0.1, atol=0)
    dark, bright = clean < 0.5, clean > 0.95
    for part in (dark, bright):
        torch.testing.assert_close(
            noise.variance(clean)[part].mean(), expected[part].mean(), rtol=0.2, atol=0
        )


def test_constant_noise_is_not_taken_for_photons():
    frames = _sample_frames() + 0.05 * torch.randn(4, 128, 128, generator=rng(3))
    noise = estimate_poisson(frames)
    assert noise.variance(torch.tensor(0.3)) == pytest.approx(0.05**2, rel=0.25)
    assert noise.variance(torch.tensor(1.0)) == pytest.approx(0.05**2, rel=0.15)


def _sample_frames():
    """Smooth blobs and discs of transmission 0.3 to 1, `(4, 128, 128)`."""
    y, x = np.mgrid[:128, :128] / 128
    frames = [0.65 + 0.35 * np.sin(3 * x + i) * np.cos(2 * y) for i in range(4)]
    disc = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.04
    return torch.tensor(np.stack(frames) * np.where(disc, 0.5, 1.0), dtype=torch.float32)


def test_errors_name_the_way_out():
    with pytest.raises(TxmError, match="crop it with --roi"):
        BlockMean((3, 3)).A(torch.zeros(1, 1, 8, 9))
    with pytest.raises(TxmError, match="odd kernel"):
        Blur(torch.ones(4, 4), (8, 8))
    with pytest.raises(TxmError, match="gaussian2d"):
        fourier_mask("spiral", (8, 8), 4, generator=rng())
    with pytest.raises(TxmError, match="2D point spread"):
        measured_kernel(torch.zeros(3, 3))
    with pytest.raises(TxmError, match="cannot reach"):
        pseudo_inverse(_Nothing(), torch.ones(1, 1, 4, 4))


class _Nothing:
    def A(self, x):
        return 0 * x

    A_adjoint = A
