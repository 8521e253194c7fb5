"""Where rays run and where a pixel's shadow falls: parallel and fan beam.

Image coordinates are centred: `x` grows with the column, `y` with the row (downwards), both zero at
the rotation axis. The detector's coordinate at angle theta is `s = x cos(theta) + y sin(theta)`;
scikit-image and ASTRA count y upwards, so their images are ours with the rows reversed. A ray is
the line `nx x + ny y = s` with unit normal. All lengths are in pixels of the detector, measured at
the rotation axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from txmcorrect.errors import GeometryError


@dataclass(frozen=True)
class Rays:
    """Unit normals `nx`, `ny` and offsets `s` of rays, each `(n_theta, width)` float64."""

    nx: Tensor
    ny: Tensor
    s: Tensor


@dataclass(frozen=True)
class ParallelBeam:
    """Parallel rays, one detector row seen from `theta`.

    Attributes
    ----------
    theta : `(n_theta,)` radians, in any order and any number.
    width : detector pixels. center : rotation axis in detector pixels; the middle unless given.
    """

    theta: Tensor
    width: int
    center: float | None = None

    def __post_init__(self) -> None:
        _check(self.theta, self.width)

    @property
    def axis(self) -> float:
        """Detector coordinate of the rotation axis."""
        return (self.width - 1) / 2 if self.center is None else self.center

    def reach(self, size: int) -> int:
        """Rays either side of a shadow's centre that a pixel can touch."""
        return 1

    def rays(self) -> Rays:
        """Return every ray."""
        theta = self.theta[:, None].double()
        s = torch.arange(self.width, device=theta.device).double() - self.axis
        shape = (len(theta), self.width)
        return Rays(theta.cos().expand(shape), theta.sin().expand(shape), s.expand(shape))

    def shadow(self, views: slice, x: Tensor, y: Tensor) -> Tensor:
        """Detector coordinate of points whose `x`, `y` broadcast to `(..., n_theta)`."""
        theta = self.theta[views].double()
        return x * theta.cos().to(x) + (y * theta.sin().to(y) + self.axis)

    def distance(self, views: slice, x: Tensor, y: Tensor, ray: Tensor, miss: Tensor) -> Tensor:
        """How far a point is from `ray`, having missed it by `miss` on the detector."""
        return miss.abs()

    def slope(self, views: slice, ray: Tensor) -> Tensor:
        """Larger component m of the rays' normals."""
        theta = self.theta[views].double()
        return torch.maximum(theta.cos().abs(), theta.sin().abs()).to(ray)

    def magnification(self, views: slice, x: Tensor, y: Tensor) -> Tensor:
        """Size of a point's shadow relative to one at the axis: 1 everywhere."""
        return x.new_ones(())


@dataclass(frozen=True)
class FanBeam:
    """Rays from a point source through a flat detector; along +y at theta = 0.

    Attributes
    ----------
    theta, width, center : as for `ParallelBeam`.
    source : distance from the source to the rotation axis.
    """

    theta: Tensor
    width: int
    source: float
    center: float | None = None

    def __post_init__(self) -> None:
        _check(self.theta, self.width)

    @property
    def axis(self) -> float:
        """Detector coordinate of the rotation axis."""
        return (self.width - 1) / 2 if self.center is None else self.center

    def reach(self, size: int) -> int:
        """Rays either side of a shadow's centre that a pixel can touch."""
        radius = size / math.sqrt(2)
        if radius >= self.source:
            raise GeometryError(
                f"expected the source outside the image, over {radius:.0f} px from the axis, "
                f"got {self.source:.0f} px; move it away or make the image smaller"
            )
        gap = self.source - radius
        return math.ceil(self.source / gap * math.hypot(1, radius / gap))

    def rays(self) -> Rays:
        """Return every ray: n = (R e - s d) / |.| for the one through s beside the axis."""
        theta = self.theta[:, None].double()
        s = torch.arange(self.width, device=theta.device).double() - self.axis
        length = s.square().add(self.source**2).sqrt()
        nx = (self.source * theta.cos() + s * theta.sin()) / length
        ny = (self.source * theta.sin() - s * theta.cos()) / length
        return Rays(nx, ny, (self.source * s / length).expand_as(nx))

    def shadow(self, views: slice, x: Tensor, y: Tensor) -> Tensor:
        """Detector coordinate of points whose `x`, `y` broadcast to `(..., n_theta)`."""
        theta = self.theta[views].double()
        lateral = x * theta.cos().to(x) + y * theta.sin().to(y)
        return lateral * self.magnification(views, x, y) + self.axis

    def distance(self, views: slice, x: Tensor, y: Tensor, ray: Tensor, miss: Tensor) -> Tensor:
        """How far a point is from `ray`, having missed it by `miss` on the detector."""
        length = (ray - self.axis).square().add(self.source**2).sqrt()
        return miss.abs() * self.source / (self.magnification(views, x, y) * length)

    def slope(self, views: slice, ray: Tensor) -> Tensor:
        """Larger component m of the rays' normals."""
        theta = self.theta[views].double()
        cos, sin, s = theta.cos().to(ray), theta.sin().to(ray), ray - self.axis
        nx, ny = self.source * cos + s * sin, self.source * sin - s * cos
        return torch.maximum(nx.abs(), ny.abs()) / s.square().add(self.source**2).sqrt()

    def magnification(self, views: slice, x: Tensor, y: Tensor) -> Tensor:
        """Size of a point's shadow relative to one at the axis: R / (R + depth)."""
        theta = self.theta[views].double()
        depth = y * theta.cos().to(y) - x * theta.sin().to(x)
        return self.source / (self.source + depth)


Beam = ParallelBeam | FanBeam


def _check(theta: Tensor, width: int) -> None:
    if theta.ndim != 1 or len(theta) == 0 or not bool(torch.isfinite(theta).all()):
        raise GeometryError(
            f"expected finite angles, one per projection, got a tensor of {tuple(theta.shape)}"
        )
    if width < 2:
        raise GeometryError(f"expected a detector of at least 2 pixels, got {width}")
