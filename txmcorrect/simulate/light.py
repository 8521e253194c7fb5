"""An instrument of `draw_world`: a `Beam` with all by which empty frames may change, and its states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates

from txmcorrect.simulate.beam import ENVELOPES, MODES, Beam, Family, draw_beam
from txmcorrect.simulate.fields import Image, Shape, frequencies, grid_px
from txmcorrect.simulate.modes import broad_modes, measured_modes

Texture = Literal["mottle", "speckle", "none"]
Detector = Literal["pattern", "none"]
BLOCK_PX = 2**20  # of frames that are computed at a time
SPECKLE_PX = (2.0, 16.0)
SPECKLE_RMS = (0.005, 0.04)
LINES = 12  # stripes of the development family
# Those of 0.1.0 share the hump between training and benchmark; worlds share none.
WORLD_ENVELOPES: dict[Family, list[str]] = {
    "train": ENVELOPES["train"],
    "develop": ENVELOPES["develop"],
    "benchmark": ["lobes"],
}


@dataclass(frozen=True)
class Motion:
    """States of the beam at `m` moments.

    Attributes
    ----------
    shift : `(m, 2)` y, x of the illumination in pixels; zoom : `(m,)` log magnification of it.
    scores : `(m, k)` of broad modes, then of those of measured jitter. stripes : `(m,)` pixels by which
    stripes have moved. level : `(m,)` log level that no record knows. current : `(m,)` log ring current.
    jumps : `(m,)` how many sudden changes came before.
    """

    shift: NDArray[np.float64]
    zoom: NDArray[np.float64]
    scores: NDArray[np.float64]
    stripes: NDArray[np.float64]
    level: NDArray[np.float64]
    current: NDArray[np.float64]
    jumps: NDArray[np.intp]

    @staticmethod
    def still(m: int, k: int) -> Motion:
        """`m` moments at which nothing moves, with `k` scores."""
        none, never = np.zeros(m), np.zeros(m, np.intp)
        return Motion(np.zeros((m, 2)), none, np.zeros((m, k)), none, none, none, never)

    def at(self, chosen: Any) -> Motion:
        """Some of these moments."""
        return Motion(**{name: values[chosen] for name, values in vars(self).items()})

    def moved(self, states: NDArray[np.float64]) -> Motion:
        """Add states `(m, 2 + MODES)`: shift y, x and the broad modes' scores."""
        scores = self.scores.copy()
        scores[:, :MODES] += states[:, 2:]
        return replace(self, shift=self.shift + states[:, :2], scores=scores)


@dataclass(frozen=True)
class Light:
    """`beam` with its `MODES` broad modes; `jitter` `(k, h, w)` measured ones; `stripes` `(h,)` log profile."""

    beam: Beam
    jitter: Image
    stripes: Image

    @property
    def size(self) -> int:
        """How many scores a state has."""
        return MODES + len(self.jitter)

    def log_background(self, motion: Motion) -> Image:
        """Log background `(m, h, w)` of these states, without their levels and currents."""
        h, w = self.beam.shape
        out = np.empty((len(motion.level), h, w), np.float32)
        modes = np.concatenate([self.beam.modes, self.jitter])
        block = max(1, BLOCK_PX // (h * w))
        for start in range(0, len(out), block):
            some = motion.at(slice(start, start + block))
            here = self._illumination(some) + self.beam.fixed
            here = here + np.tensordot(some.scores.astype(np.float32), modes, 1)
            if self.stripes.any():
                here = here + moved_profile(self.stripes, some.stripes)[:, :, None]
            out[start : start + block] = here
        return out

    def _illumination(self, motion: Motion) -> Image:
        """Envelope and moving texture `(m, h, w)`, or `(1, h, w)` where nothing moves them."""
        beam, (h, w) = self.beam, self.beam.shape
        shift, zoom = motion.shift, motion.zoom
        if not (np.ptp(shift, axis=0).any() or zoom.any()):
            shift, zoom = shift[:1], zoom[:1]
        if zoom.any():
            return np.asarray(beam.envelope(shift, zoom) + self._zoomed(shift, zoom), np.float32)
        return np.asarray(
            beam.envelope(shift) + moved_field(beam.mottle_hat, beam.grid, shift)[:, :h, :w],
            np.float32,
        )

    def _zoomed(self, shift: NDArray[Any], zoom: NDArray[Any]) -> Image:
        """Texture `(m, h, w)` magnified about the frame's middle."""
        h, w = self.beam.shape
        y, x = grid_px((h, w))
        texture = scipy.fft.irfft2(self.beam.mottle_hat, s=self.beam.grid)
        places = [
            np.broadcast_arrays(y * s - dy + (h - 1) / 2, x * s - dx + (w - 1) / 2)
            for (dy, dx), s in zip(shift, np.exp(-zoom), strict=True)
        ]
        return np.stack([map_coordinates(texture, p, order=3, mode="grid-wrap") for p in places])

    def rms_change(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        """Rms over lit pixels of the log ratio of pairs of states `(p, 2 + MODES)`, means removed."""
        states = np.concatenate([a, b])
        logs = self.log_background(Motion.still(len(states), self.size).moved(states))
        change = (logs[: len(a)] - logs[len(a) :])[:, self.beam.lit]
        return float(np.sqrt(change.var(1).mean()))


def moved_field(half_spectrum: NDArray[Any], grid: Shape, shift: NDArray[Any]) -> Image:
    """`fields.shifted` with a phase for each axis, which is sooner done: `(m, *grid)`."""
    fy, fx = frequencies(grid)
    down = np.exp(-2j * np.pi * shift[:, :1] * fy[:, 0]).astype(np.complex64)
    along = np.exp(-2j * np.pi * shift[:, 1:] * fx[0]).astype(np.complex64)
    spectra = half_spectrum.astype(np.complex64) * down[:, :, None] * along[:, None]
    return np.asarray(scipy.fft.irfft2(spectra, s=grid, overwrite_x=True), np.float32)


def moved_profile(profile: Image, shift: NDArray[Any]) -> Image:
    """Move a periodic profile `(n,)` by parts of a pixel: `(m, n)`."""
    phase = np.exp(-2j * np.pi * shift[:, None] * scipy.fft.rfftfreq(len(profile)))
    spectrum = scipy.fft.rfft(profile.astype(np.float64))
    return np.asarray(scipy.fft.irfft(spectrum * phase, n=len(profile)), np.float32)


def draw_light(
    rng: np.random.Generator,
    shape: Shape,
    family: Family,
    texture: Texture,
    detector: Detector,
    jitter: tuple[int, float] | None = None,
    stripes: float = 0.0,
) -> Light:
    """Draw an instrument.

    Parameters
    ----------
    texture : what goes with the illumination beside its envelope. detector : `none` shows photon noise only.
    jitter : rank and broad rms of modes as measured. stripes : rms of a monochromator's lines.
    """
    beam = draw_beam(rng, shape, family, WORLD_ENVELOPES[family])
    modes = broad_modes(rng, shape, beam.lit, family, MODES)
    beam = replace(
        beam,
        modes=modes,
        mottle_hat=_texture(rng, beam, family, texture),
        fixed=beam.fixed if detector == "pattern" else np.zeros_like(beam.fixed),
    )
    images = np.empty((0, *shape), np.float32)
    if jitter is not None:
        images = measured_modes(rng, shape, beam.lit, family, *jitter)
    return Light(beam, images, stripes * STRIPES[family](rng, shape[0]))


def _texture(
    rng: np.random.Generator, beam: Beam, family: Family, texture: Texture
) -> NDArray[Any]:
    """Half spectrum of what moves with the illumination."""
    if texture == "none":
        return np.zeros_like(beam.mottle_hat)
    if texture == "mottle":
        return beam.mottle_hat
    width = float(np.exp(rng.uniform(*np.log(SPECKLE_PX))))
    rms = float(np.exp(rng.uniform(*np.log(SPECKLE_RMS))))
    grains = SPECKLES[family](rng, beam.grid, width)
    grains = (grains - grains.mean()) / (grains.std() + 1e-9)
    return np.asarray(beam.mottle_hat + rms * scipy.fft.rfft2(grains.astype(np.float32)))


def _band(rng: np.random.Generator, grid: Shape, width: float) -> Image:
    """Gaussian field whose periods are about twice `width`."""
    fy, fx = frequencies(grid)
    f = np.sqrt(fy**2 + fx**2) * 2 * width
    white = scipy.fft.rfft2(rng.standard_normal(grid, dtype=np.float32))
    return np.asarray(scipy.fft.irfft2(white * np.exp(-((f - 1) ** 2) / 0.18), s=grid), np.float32)


def _interference(rng: np.random.Generator, grid: Shape, width: float) -> Image:
    """Intensity of a random coherent field, compressed."""
    return np.asarray(np.log1p(_band(rng, grid, width) ** 2 + _band(rng, grid, width) ** 2))


def _scattered(rng: np.random.Generator, grid: Shape, width: float) -> Image:
    """Equal round grains at random places."""
    points = (rng.random(grid) < 0.2 / width**2).astype(np.float32)
    fy, fx = frequencies(grid)
    disc = np.exp(-((np.pi * width) ** 2) * (fy**2 + fx**2) / 2)
    return np.asarray(scipy.fft.irfft2(scipy.fft.rfft2(points) * disc, s=grid), np.float32)


SPECKLES: dict[Family, Callable[[np.random.Generator, Shape, float], Image]] = {
    "train": _band,
    "develop": _interference,
    "benchmark": _scattered,
}


def _unit_profile(profile: NDArray[Any]) -> Image:
    return np.asarray((profile - profile.mean()) / (profile.std() + 1e-9), np.float32)


def _noise_stripes(rng: np.random.Generator, n: int) -> Image:
    return _unit_profile(
        gaussian_filter1d(rng.standard_normal(n), rng.uniform(0.8, 3), mode="wrap")
    )


def _line_stripes(rng: np.random.Generator, n: int) -> Image:
    """Dark lines of the crystal's lattice, with wings."""
    rows = np.arange(n)[:, None]
    apart = np.abs(rows - rng.uniform(0, n, LINES))
    apart = np.minimum(apart, n - apart)
    return _unit_profile(-(rng.uniform(0.2, 1, LINES) / (1 + (apart / 1.5) ** 2)).sum(1))


def _step_stripes(rng: np.random.Generator, n: int) -> Image:
    """Bands of one level each, with edges two pixels wide."""
    edges = np.sort(rng.uniform(0, n, max(4, n // 10)))
    levels = rng.standard_normal(len(edges) + 1)
    levels[-1] = levels[0]
    return _unit_profile(
        gaussian_filter1d(levels[np.searchsorted(edges, np.arange(n))], 1.0, mode="wrap")
    )


STRIPES: dict[Family, Callable[[np.random.Generator, int], Image]] = {
    "train": _noise_stripes,
    "develop": _line_stripes,
    "benchmark": _step_stripes,
}
