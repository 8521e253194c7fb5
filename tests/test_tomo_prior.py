"""`tomo --method tpdm`: few views, a prior that is exact for smooth fields, spread, resuming."""

import math

import h5py
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import txmcorrect.tomography.sampled as sampled
from txmcorrect.config import TomoSettings
from txmcorrect.diffusion.denoiser import Noise, per_item
from txmcorrect.errors import ModelError
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.projector import Projector
from txmcorrect.simulate.bodies import SCALE, benchmark_body, draw_plane, typical
from txmcorrect.tomo import run
from txmcorrect.volumes import slice_planes
from txmcorrect.weights import ModelSpec, load_model, save_model

DEPTH, SIZE, VIEWS = 8, 32, 9
THETA = np.arange(VIEWS) * math.pi / VIEWS
NETWORK = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "patch": 2}


def smooth_planes(model):
    """Exact denoiser of smooth non-zero-mean fields, for both planes."""

    def denoise(x, sigma, cond, step):
        ky, kx = (torch.fft.fftfreq(n) for n in x.shape[-2:])
        power = (0.003 + ky[:, None] ** 2 + kx**2) ** -2
        power = power / power.mean()
        return torch.fft.ifft2(torch.fft.fft2(x) * (power / (power + per_item(sigma, x) ** 2))).real

    return denoise, denoise


@pytest.fixture(scope="module")
def volume():
    """A smooth random body in the circle that all views see, `(z, y, x)` per pixel."""
    field = np.random.default_rng(5).standard_normal((DEPTH, SIZE, SIZE))
    field = gaussian_filter(field, 3.0, mode="wrap")
    x = np.arange(SIZE) - (SIZE - 1) / 2
    inside = np.clip((12 - np.hypot(x[:, None], x)) / 4, 0, 1)
    return (0.02 * inside * (1 + field / field.std())).astype(np.float32)


@pytest.fixture
def scan(tmp_path, volume):
    beam = ParallelBeam(torch.from_numpy(THETA), SIZE)
    lines = Projector(beam, SIZE).A(torch.from_numpy(volume)).numpy().swapaxes(0, 1)
    noise = 0.03 * np.random.default_rng(0).standard_normal(lines.shape)
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = (np.exp(-lines) + noise).astype(np.float32)
        file["exchange/theta"] = np.rad2deg(THETA)
    return path


@pytest.fixture
def prior(tmp_path):
    """An untrained model of slices."""
    spec = ModelSpec(NETWORK, "slice", 3, 32, schedule="karras", extra={"pad": 4, "scale": SCALE})
    torch.manual_seed(0)
    path = tmp_path / "prior.safetensors"
    save_model(path, spec.build().state_dict(), spec)
    return path


def tomo(scan, prior, **options):
    options = {"flats": "none", "center": (SIZE - 1) / 2, "levels": 12, **options}
    options = {"out": scan.with_name("out.h5"), "overwrite": True, **options}
    settings = TomoSettings(scans=[scan], prior=str(prior), quiet=True, **options)
    with h5py.File(run(settings).outputs[0]) as file:
        group = file["reconstruction"]
        return group["volume"][()], group["std"][()] if "std" in group else None


def rms(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_few_views_are_met_better_than_by_back_projection(scan, prior, volume, monkeypatch):
    monkeypatch.setattr(sampled, "slice_planes", smooth_planes)
    found, std = tomo(scan, prior, method="tpdm", draws=3, levels=20)
    fbp, none = tomo(scan, prior, method="fbp")
    assert none is None
    assert rms(found, volume) < 0.7 * rms(fbp, volume)
    assert 0.5 < rms(found, volume) / np.sqrt((std**2).mean()) < 2
    # Projections of the result are those measured, within their noise.
    beam = ParallelBeam(torch.from_numpy(THETA), SIZE)
    lines = Projector(beam, SIZE).A(torch.from_numpy(found)).numpy().swapaxes(0, 1)
    with h5py.File(scan) as file:
        assert rms(np.exp(-lines), file["exchange/data"][()]) < 0.035


def test_a_killed_run_goes_on_to_the_same_volume(scan, prior, monkeypatch):
    """Killed within the second draw; the memory budget changes in between."""
    options = {"method": "tpdm", "draws": 2, "levels": 4}
    whole = tomo(scan, prior, out=scan.with_name("whole.h5"), **options)
    draw, moves = sampled.draw_volumes, []

    def killed(folder, shape, samplers, report):
        def tell(stage, done, total):
            moves.append(done)
            if done == 11:
                raise KeyboardInterrupt

        return draw(folder, shape, samplers, tell)

    monkeypatch.setattr(sampled, "draw_volumes", killed)
    with pytest.raises(KeyboardInterrupt):
        tomo(scan, prior, overwrite=False, **options)
    part = scan.with_name("out.h5.part")
    assert (part / "draw-0.json").exists() and (part / "draw-1.json").exists()
    again = tomo(scan, prior, overwrite=False, memory=10_000, **options)
    assert moves[11:] == [12, 13, 14, 15, 16]
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not part.exists()


def test_the_prior_must_be_one_of_slices(scan, tmp_path):
    spec = ModelSpec(NETWORK, "sample", 2, 32, schedule="karras")
    path = tmp_path / "other.safetensors"
    save_model(path, spec.build().state_dict(), spec)
    with pytest.raises(ModelError, match="expected a model of --condition slice"):
        tomo(scan, path, method="tpdm")


def test_two_rows_are_enough(tmp_path, scan, prior):
    with h5py.File(scan, "r+") as file:
        rows = file["exchange/data"][:, 3:5]
        del file["exchange/data"]
        file["exchange/data"] = rows
    found, _ = tomo(scan, prior, method="tpdm", levels=3)
    assert found.shape == (2, SIZE, SIZE) and np.isfinite(found).all()


def test_both_planes_are_told_apart(prior):
    seen = []
    model = load_model(prior, "slice")
    model.denoiser.register_forward_hook(lambda m, inputs, out: seen.append(inputs[2][0, 0].max()))
    for plane in slice_planes(model):
        plane(torch.zeros(1, 1, 40, 40), torch.tensor(1.0), None, Noise().step(0))
    assert seen[0] == 0 and seen[-1] == 1


def test_bodies_are_drawn_alike_as_planes_and_as_volumes():
    body = benchmark_body(3, 1, (20, 24))
    stack = body.volume(20, 24)
    np.testing.assert_allclose(stack[7], body.axial(7 - 9.5, 24), atol=1e-6)
    np.testing.assert_allclose(stack[:, 11], body.upright(11 - 11.5, 20, 24), atol=1e-6)
    assert typical(stack) > stack.mean() > 0
    for index in range(12):
        image, which = draw_plane(0, index)
        again, _ = draw_plane(0, index)
        np.testing.assert_array_equal(image, again)
        assert which in (0, 1) and np.isfinite(image).all() and image.min() >= 0
