"""Reconstruction in numbers: `python tests/bench/recon.py [--size 256] [--astra PYTHON]`.

Accuracy and time against scikit-image in one process (and against ASTRA in another, where a Python
with `astra` is named), the adjoint's error, and how SIRT and ML-EM converge. Times are ratios.
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import iradon, radon, resize

from txmcorrect.recon.fbp import FILTERS, fbp
from txmcorrect.recon.geometry import FanBeam, ParallelBeam
from txmcorrect.recon.iterative import mlem, sirt
from txmcorrect.recon.projector import Projector

ASTRA = """
import json, sys, time
import astra, numpy as np
stored = np.load(sys.argv[1])
y, theta, size = stored["sinogram"], stored["theta"], int(stored["size"])
volume = astra.create_vol_geom(size, size)
beam = astra.create_proj_geom("parallel", 1.0, y.shape[1], theta)
projector = astra.create_projector("linear", beam, volume)
begin = time.perf_counter()
sinogram = astra.data2d.create("-sino", beam, y)
image = astra.data2d.create("-vol", volume)
config = astra.astra_dict("FBP")
config.update(ProjectorId=projector, ProjectionDataId=sinogram, ReconstructionDataId=image)
config["option"] = {"FilterType": "ram-lak"}
astra.algorithm.run(astra.algorithm.create(config))
found = astra.data2d.get(image)
seconds = time.perf_counter() - begin
_, forward = astra.create_sino(stored["phantom"], projector)
np.savez(sys.argv[2], found=found, forward=forward, seconds=seconds)
"""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=255)
    parser.add_argument("--views", type=int, default=360)
    parser.add_argument("--astra", help="a Python that has astra-toolbox")
    given = parser.parse_args()
    size = given.size | 1  # odd: all agree on the middle
    phantom = resize(shepp_logan_phantom(), (size, size), anti_aliasing=True).astype(np.float32)
    degrees = np.linspace(0, 180, given.views, endpoint=False)
    sinogram = radon(phantom, degrees, circle=True).T.astype(np.float32)
    print(f"Shepp-Logan, {size} x {size}, {given.views} views, {torch.get_num_threads()} threads")
    compare_filters(phantom, degrees, sinogram)
    compare_times(degrees, sinogram)
    if given.astra:
        compare_astra(given.astra, phantom, degrees, sinogram)
    adjoint_errors(size)
    convergence(phantom[::2, ::2].copy())


def rms(image: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square difference inside the circle."""
    grid = np.arange(len(truth)) - (len(truth) - 1) / 2
    inside = np.hypot(grid, grid[:, None]) < len(truth) / 2 - 2
    return float(np.sqrt(((image - truth)[inside] ** 2).mean()))


def ours(degrees: np.ndarray, sinograms: np.ndarray, name: str = "ramp") -> np.ndarray:
    """Our reconstruction, rows as scikit-image and ASTRA count them."""
    size = sinograms.shape[-1]
    beam = ParallelBeam(torch.from_numpy(np.deg2rad(degrees)), size)
    return fbp(beam, size, torch.from_numpy(sinograms), name).flip(-2).numpy()


def compare_filters(phantom: np.ndarray, degrees: np.ndarray, sinogram: np.ndarray) -> None:
    """Error of both against the phantom, filter by filter."""
    for name in FILTERS[:-1]:
        theirs = rms(iradon(sinogram.T, degrees, filter_name=name, circle=True), phantom)
        mine = rms(ours(degrees, sinogram, name), phantom)
        print(
            f"fbp {name:12s} rms {mine:.5f}, scikit-image {theirs:.5f}, ratio {mine / theirs:.3f}"
        )


def compare_times(degrees: np.ndarray, sinogram: np.ndarray, repeats: int = 5) -> None:
    """Time per slice over scikit-image's, alternating so that both see the same machine."""
    for count in (1, 8, 32):
        block = np.repeat(sinogram[None], count, 0)
        ratios = []
        for _ in range(repeats):
            begin = time.perf_counter()
            ours(degrees, block)
            middle = time.perf_counter()
            iradon(sinogram.T, degrees, filter_name="ramp", circle=True)
            ratios.append((middle - begin) / count / (time.perf_counter() - middle))
        print(f"fbp time of a slice, {count:2d} at once: {np.median(ratios):.3f} of scikit-image's")


def compare_astra(
    python: str, phantom: np.ndarray, degrees: np.ndarray, sinogram: np.ndarray
) -> None:
    """Accuracy, time and forward projection against ASTRA on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        data, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
        theta = np.deg2rad(degrees)
        np.savez(data, sinogram=sinogram, theta=theta, size=len(phantom), phantom=phantom)
        subprocess.run([python, "-c", ASTRA, data, result], check=True)
        stored = np.load(result)
    begin = time.perf_counter()
    mine = ours(degrees, sinogram)
    ratio = (time.perf_counter() - begin) / float(stored["seconds"])
    print(
        f"fbp ramp rms {rms(mine, phantom):.5f}, ASTRA {rms(stored['found'], phantom):.5f}; "
        f"time of one slice {ratio:.2f} of ASTRA's (CPU, linear)"
    )
    pair = Projector(ParallelBeam(torch.from_numpy(theta), len(phantom)), len(phantom))
    forward = pair.A(torch.from_numpy(phantom[::-1].copy())).numpy()
    error = np.abs(forward - stored["forward"]).max() / stored["forward"].max()
    print(f"projection of the phantom: differs from ASTRA's by {error:.2e} of the largest value")


def adjoint_errors(size: int) -> None:
    """|<A x, y> - <x, A^T y>| over |<A x, y>|, float32."""
    half, turn = torch.linspace(0, math.pi, 91)[:-1], torch.linspace(0, 2 * math.pi, 91)[:-1]
    beams = {
        "parallel": ParallelBeam(half, size + 20, size / 2 - 7.3),
        "fan": FanBeam(turn, 2 * size, 1.5 * size),
    }
    for name, beam in beams.items():
        pair = Projector(beam, size)
        x, y = torch.rand(2, size, size), torch.rand(2, len(beam.theta), beam.width)
        forward = float((pair.A(x).double() * y).sum())
        backward = float((x.double() * pair.A_adjoint(y)).sum())
        print(f"adjoint error, {name}: {abs(forward - backward) / abs(forward):.1e}")


def convergence(small: np.ndarray, iterations: int = 100) -> None:
    """Relative misfit and error of both iterative methods, and of fbp on the same data."""
    truth, views = torch.from_numpy(small), torch.linspace(0, math.pi, 121)[:-1]
    pair = Projector(ParallelBeam(views, len(small)), len(small))
    sinogram = pair.A(truth)
    size = float(sinogram.square().mean().sqrt())
    for name, method in (("sirt", sirt), ("mlem", mlem)):
        curve: list[float] = []
        found = method(pair, sinogram, iterations, watch=lambda _, m, c=curve: c.append(m / size))
        shown = {i: round(curve[i], 5) for i in (0, 1, 3, 9, 29, iterations - 1)}
        print(
            f"{name} misfit by iteration {json.dumps(shown)}; rms {rms(found.numpy(), small):.5f}"
        )
    print(
        f"fbp on the same data: rms {rms(fbp(pair.beam, len(small), sinogram).numpy(), small):.5f}"
    )


if __name__ == "__main__":
    main()
