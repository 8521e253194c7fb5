"""Masked Fourier measurements of real images, and the families of masks used with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from txmcorrect.errors import TxmError
from txmcorrect.physics.operators import Spectral


@dataclass(frozen=True)
class MaskedFourier(Spectral):
    """Orthonormal Fourier transform of a real image, kept where `mask` `(h, w)` is 1.

    Measurements are complex and 0 outside the mask. A real image's frequency k and -k carry the
    same number, so `A A^T` has eigenvalue 1 on Hermitian pairs measured twice (0 on what is
    anti-Hermitian there) and 1/2 where only one of the pair was measured.
    """

    mask: Tensor

    def A(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho") * self.mask

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(y * self.mask, norm="ortho").real

    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        partner = mirror(y).conj()
        mask = self.mask.to(y.real.dtype)
        twice = mask * mirror(mask)
        eigenvalue = (mask + twice) / 2  # 0 unmeasured, 1/2 measured once, 1 measured twice
        hermitian = torch.where(twice > 0, (y + partner) / 2, y)
        return f(eigenvalue) * hermitian + f(eigenvalue * (1 - twice)) * (y - hermitian)


def mirror(y: Tensor) -> Tensor:
    """Exchange frequencies k and -k on the last two axes."""
    return torch.roll(y.flip((-2, -1)), (1, 1), (-2, -1))


def _frequencies(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """|ky| `(h, 1)` and |kx| `(1, w)`, 0 at the centre and 1 at the highest, in FFT order."""
    return (
        2 * torch.fft.fftfreq(shape[0]).abs()[:, None],
        2 * torch.fft.fftfreq(shape[1]).abs()[None, :],
    )


def _pick(density: Tensor, always: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Draw `share` of the entries with the given odds, without replacement; `always` come first."""
    total = round(share * density.numel())
    noise = -torch.log(torch.rand(density.shape, generator=generator).clamp(min=1e-20))
    rank = torch.where(always, -1.0, noise / density.clamp(min=1e-12))
    mask = torch.zeros(density.numel())
    mask[rank.flatten().argsort()[:total]] = 1
    return mask.reshape(density.shape)


def _uniform1d(shape: tuple[int, int], share: float, centre: float, g: torch.Generator) -> Tensor:
    _, kx = _frequencies(shape)
    return _pick(torch.ones_like(kx), kx < centre, share, g).expand(shape)


def _gaussian1d(shape: tuple[int, int], share: float, centre: float, g: torch.Generator) -> Tensor:
    _, kx = _frequencies(shape)
    return _pick(torch.exp(-0.5 * (kx / 0.35) ** 2), kx < centre, share, g).expand(shape)


def _equispaced1d(
    shape: tuple[int, int], share: float, centre: float, g: torch.Generator
) -> Tensor:
    _, kx = _frequencies(shape)
    spacing = max(2, round(shape[1] / max(1, round((share - centre) * shape[1]))))
    start = int(torch.randint(spacing, (1,), generator=g))
    lines = torch.arange(shape[1])[None, :] % spacing == start
    return ((kx < centre) | lines).float().expand(shape)


def _uniform2d(shape: tuple[int, int], share: float, centre: float, g: torch.Generator) -> Tensor:
    ky, kx = _frequencies(shape)
    return _pick(torch.ones(shape), (ky < centre) & (kx < centre), share, g)


def _gaussian2d(shape: tuple[int, int], share: float, centre: float, g: torch.Generator) -> Tensor:
    ky, kx = _frequencies(shape)
    density = torch.exp(-0.5 * (ky**2 + kx**2) / 0.35**2)
    return _pick(density, (ky < centre) & (kx < centre), share, g)


def _radial(shape: tuple[int, int], share: float, centre: float, g: torch.Generator) -> Tensor:
    turn = float(torch.rand(1, generator=g)) * torch.pi
    spokes = max(1, round(share * torch.pi * min(shape) / 2))
    kept = float(_spokes(shape, spokes, turn, centre).mean())  # spokes overlap near the middle
    return _spokes(shape, max(1, round(spokes * share / kept)), turn, centre)


def _spokes(shape: tuple[int, int], count: int, turn: float, centre: float) -> Tensor:
    """`count` lines through frequency 0, one sample wide, and the middle of the plane."""
    ky, kx = torch.fft.fftfreq(shape[0])[:, None], torch.fft.fftfreq(shape[1])[None, :]
    mask = (2 * ky.abs() < centre) & (2 * kx.abs() < centre)
    for angle in torch.arange(count) * (torch.pi / count) + turn:
        away = (ky * torch.cos(angle) - kx * torch.sin(angle)).abs()
        mask = mask | (away * max(shape) < 0.5)
    return mask.float()


MASKS: dict[str, Callable[[tuple[int, int], float, float, torch.Generator], Tensor]] = {
    "uniform1d": _uniform1d,
    "gaussian1d": _gaussian1d,
    "equispaced1d": _equispaced1d,
    "uniform2d": _uniform2d,
    "gaussian2d": _gaussian2d,
    "radial": _radial,
}


def fourier_mask(
    family: str,
    shape: tuple[int, int],
    acceleration: float,
    centre: float = 0.08,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Draw a mask `(h, w)` of a named family that keeps about 1 / `acceleration` of the frequencies.

    Parameters
    ----------
    family : a name of `MASKS`; `1d` masks drop whole columns, `2d` single frequencies.
    centre : fraction of each axis, around frequency 0, that is always kept.

    Raises
    ------
    TxmError : no such family, or an acceleration below 1.
    """
    if family not in MASKS or acceleration < 1:
        raise TxmError(f"expected one of {', '.join(MASKS)} and >= 1, got {family} {acceleration}")
    return MASKS[family](shape, 1 / acceleration, centre, generator).clone()
