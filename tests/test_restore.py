"""`restore` from end to end with a prior that is exact: independent pixels around vacuum."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

import txmcorrect.restore as workflow
from txmcorrect.cli import app
from txmcorrect.config import RestoreSettings, UsageError
from txmcorrect.diffusion.denoiser import per_item
from txmcorrect.errors import ModelError, OutputError, TxmError
from txmcorrect.metrics import psnr
from txmcorrect.physics import BlockMean, gaussian_kernel, open_blur, separable_blur
from txmcorrect.report.restoration import radial_power
from txmcorrect.restoring.draw import denoise_frame, restore_frame
from txmcorrect.restoring.prior import SCALE, load_prior, patch_prior, sample_spec
from txmcorrect.restoring.problem import noise_of, pose
from txmcorrect.simulate.objects import draw_transmission
from txmcorrect.weights import Model, ModelSpec, save_model

H, W = 32, 40
QUICK = {"steps": 20, "samples": 3, "quiet": True}


class SmoothPrior(torch.nn.Module):
    """Exact denoiser of a smooth Gaussian field of deviation 1, by FFT with mirrored ends."""

    def forward(self, x, sigma, cond, step):
        h, w = x.shape[-2:]
        doubled = torch.cat([x, x.flip(-1)], -1)
        doubled = torch.cat([doubled, doubled.flip(-2)], -2)
        k2 = torch.fft.fftfreq(2 * h)[:, None] ** 2 + torch.fft.rfftfreq(2 * w) ** 2
        power = (0.001 + k2) ** -2
        power = power / power.mean()
        shrunk = torch.fft.rfft2(doubled) * (power / (power + per_item(sigma, x) ** 2))
        return torch.fft.irfft2(shrunk, s=(2 * h, 2 * w))[..., :h, :w]


def smooth_frames(n, shape=(H, W), seed=0):
    """Transmission drawn from the prior, `(n, h, w)`."""
    z = torch.randn(n, 1, *shape, generator=torch.Generator().manual_seed(seed))
    field = SmoothPrior()(z, torch.tensor(2.0), None, None)
    return (1 + 0.8 * SCALE * field / field.std())[:, 0].numpy()


@pytest.fixture
def exact(monkeypatch):
    """Put the exact prior in the place of a trained one."""
    model = Model(SmoothPrior(), sample_spec(), "exact", "exact")
    monkeypatch.setattr(workflow, "load_prior", lambda name, device: model)
    monkeypatch.setattr(workflow, "patch_prior", lambda model, memory, assembly: model.denoiser)


def save(path, frames):
    np.save(path, np.asarray(frames, np.float32))
    return path


def restored(settings):
    with h5py.File(workflow.run(settings).outputs[0]) as file:
        group = file["process/txmcorrect/restore"]
        std = group["std"][()] if "std" in group else None
        return file["exchange/data"][()], std


def rms(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_denoises_and_says_how_sure_it_is(tmp_path, exact):
    truth = smooth_frames(2)
    noisy = truth + 0.1 * np.random.default_rng(1).standard_normal(truth.shape)
    scan = save(tmp_path / "scan.npy", noisy)
    mean, std = restored(RestoreSettings(scan=scan, **{**QUICK, "samples": 8}))
    assert mean.shape == truth.shape and mean.dtype == np.float32
    assert rms(mean, truth) < 0.6 * rms(noisy, truth)
    assert rms(mean, truth) == pytest.approx(std.mean(), rel=0.4)
    once, none = restored(RestoreSettings(scan=scan, sampler="mean", overwrite=True, quiet=True))
    assert none is None
    assert rms(once, truth) < rms(mean, truth)


def test_photon_noise_is_trusted_where_it_is_small(tmp_path, exact):
    """Raw counts with --counts: the thick half has fewer photons, but less noise in transmission."""
    truth = smooth_frames(1)
    counts = np.random.default_rng(2).poisson(np.clip(truth, 0.01, None) * 80.0)
    scan = save(tmp_path / "scan.npy", counts)
    mean, _ = restored(RestoreSettings(scan=scan, counts=80.0, noise="poisson", **QUICK))
    assert rms(mean, truth) < 0.6 * rms(counts / 80.0, truth)


def test_deblurs(tmp_path, exact):
    truth = smooth_frames(1)
    profile = gaussian_kernel(2.0).sum(0)
    blurred = separable_blur(profile, profile, (H, W)).A(torch.from_numpy(truth)[:, None])[:, 0]
    y = blurred.numpy() + 0.002 * np.random.default_rng(3).standard_normal(truth.shape)
    scan = save(tmp_path / "scan.npy", y)
    mean, _ = restored(RestoreSettings(scan=scan, task="deblur", psf=2.0, noise="0.002", **QUICK))
    assert rms(mean, truth) < 0.6 * rms(y, truth)


def test_deblurs_with_a_measured_spread_that_leaves_the_frame(tmp_path, exact):
    kernel = torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
    kernel[2, 2] = 2
    tifffile.imwrite(tmp_path / "psf.tif", kernel.numpy())
    scene = smooth_frames(1, (H + 4, W + 4))
    y = open_blur(kernel / kernel.sum(), (H, W)).A(torch.from_numpy(scene)[:, None])[:, 0].numpy()
    truth = scene[:, 2:-2, 2:-2]
    scan = save(tmp_path / "scan.npy", y)
    mean, _ = restored(
        RestoreSettings(
            scan=scan, task="deblur", psf_file=tmp_path / "psf.tif", noise="0.002", **QUICK
        )
    )
    assert mean.shape == truth.shape
    assert rms(mean, truth) < 0.7 * rms(y, truth)


def test_superresolves(tmp_path, exact):
    truth = smooth_frames(1)
    y = BlockMean((2, 2)).A(torch.from_numpy(truth)[:, None])[:, 0].numpy()
    scan = save(tmp_path / "scan.npy", y)
    mean, _ = restored(RestoreSettings(scan=scan, task="superres", noise="0.002", **QUICK))
    assert mean.shape == truth.shape
    assert rms(mean, truth) < 0.8 * rms(y.repeat(2, 1).repeat(2, 2), truth)


def test_inpaints_missing_and_marked_pixels(tmp_path, exact):
    truth = smooth_frames(1)
    hole = np.zeros((H, W), bool)
    hole[10:14, 8:12] = True
    tifffile.imwrite(tmp_path / "mask.tif", hole.astype(np.uint8))
    y = truth.copy()
    y[:, hole] = 0.0
    y[:, 20, 30] = np.nan
    scan = save(tmp_path / "scan.npy", y)
    settings = RestoreSettings(
        scan=scan, task="inpaint", mask=tmp_path / "mask.tif", noise="0.005", **QUICK
    )
    mean, std = restored(settings)
    assert rms(mean[:, hole], truth[:, hole]) < 0.5 * rms(truth[:, hole], truth.mean())
    assert abs(mean[0, 20, 30] - truth[0, 20, 30]) < 0.1
    assert std[:, hole].mean() > 3 * std[:, ~hole].mean()


def test_generates_and_records(tmp_path, exact):
    settings = RestoreSettings(
        task="generate", out=tmp_path / "new.h5", size=32, number=2, record=True, **QUICK
    )
    result = workflow.run(settings)
    assert {p.name for p in result.outputs} == {
        "new.h5",
        "new.trajectory.png",
        "new.trajectory.gif",
    }
    with h5py.File(tmp_path / "new.h5") as file:
        frames = file["exchange/data"][()]
        assert frames.shape == (2, 32, 32)
        assert rms(frames[0], frames[1]) > 0.1  # each frame has numbers of its own


def test_file_tells_what_was_done_and_is_not_normalised_twice(tmp_path, exact):
    scan = save(tmp_path / "scan.npy", smooth_frames(1))
    out = workflow.run(RestoreSettings(scan=scan, noise="0.05", record=True, **QUICK)).outputs
    assert [p.suffix for p in out] == [".h5", ".png", ".html", ".png", ".gif"]
    assert all(p.stat().st_size > 0 for p in out)
    with h5py.File(out[0]) as file:
        group = file["process/txmcorrect/restore"]
        assert json.loads(group.attrs["options"])["steps"] == 20
        assert group.attrs["model_sha256"] == "exact"
        assert group["noise_floor"][0] == pytest.approx(0.0025)
        assert (file["exchange/data_white"][()] == 1).all() and len(
            file["exchange/data_white"]
        ) >= 2
        assert (file["exchange/data_dark"][()] == 0).all()


def test_interrupted_run_goes_on_where_it_stopped(tmp_path, exact, monkeypatch):
    scan = save(tmp_path / "scan.npy", smooth_frames(3))
    whole = restored(RestoreSettings(scan=scan, out=tmp_path / "whole.h5", **QUICK))
    settings = RestoreSettings(scan=scan, out=tmp_path / "cut.h5", **QUICK)
    original, calls = workflow.restore_frame, []

    def stop_at_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(workflow, "restore_frame", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        workflow.run(settings)
    assert not (tmp_path / "cut.h5").exists()
    again = restored(settings)
    assert len(calls) == 4
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(OutputError, match="--overwrite"):
        workflow.run(settings)


def test_errors_name_the_way_out(tmp_path, exact):
    scan = save(tmp_path / "scan.npy", 300 * smooth_frames(1))
    with pytest.raises(TxmError, match="give --counts"):
        workflow.run(RestoreSettings(scan=scan, quiet=True))
    with pytest.raises(UsageError, match="needs a SCAN"):
        workflow.run(RestoreSettings(task="deblur"))
    with pytest.raises(UsageError, match="takes no scan"):
        workflow.run(RestoreSettings(task="generate", scan=scan))
    with pytest.raises(UsageError, match="use ddpm"):
        workflow.run(RestoreSettings(task="deblur", sampler="mean", scan=scan))
    with pytest.raises(TxmError, match="got 'loud'"):
        noise_of("loud", torch.ones(8, 8))
    good = save(tmp_path / "good.npy", smooth_frames(1))
    mask = save(tmp_path / "mask.npy", np.zeros((3, 3)))
    with pytest.raises(TxmError, match=r"expected .32, 40. pixels, got .3, 3."):
        workflow.run(RestoreSettings(scan=good, mask=mask, quiet=True))
    with pytest.raises(TxmError, match="no such file"):
        workflow.run(RestoreSettings(scan=good, mask=tmp_path / "none.tif", quiet=True))


def test_needs_a_model_of_samples(tmp_path):
    scan = save(tmp_path / "scan.npy", smooth_frames(1))
    with pytest.raises(ModelError, match=r"found none"):
        workflow.run(RestoreSettings(scan=scan, model=str(tmp_path / "no.safetensors")))


def test_command_line_runs_a_patch_network(tmp_path):
    """An untrained network through the real patch prior, from the command line."""
    spec = sample_spec()
    save_model(tmp_path / "m.safetensors", spec.build().state_dict(), spec)
    scan = save(tmp_path / "scan.npy", smooth_frames(1))
    given = ["restore", scan, "--model", tmp_path / "m.safetensors", "--steps", 3, "--samples", 2]
    found = CliRunner().invoke(app, [str(a) for a in given])
    assert found.exit_code == 0, found.output
    assert (tmp_path / "scan.restored.h5").exists()


def test_objects_repeat_and_differ_by_family():
    one = draw_transmission(0, 3, (64, 64))
    np.testing.assert_array_equal(one, draw_transmission(0, 3, (64, 64)))
    assert rms(one, draw_transmission(0, 4, (64, 64))) > 0.01
    assert one.dtype == np.float32 and 0 < one.min() and one.max() < 1.6


def test_the_bundled_prior_takes_noise_off_and_leaves_the_sample():
    model = load_prior("bundled", "cpu")
    truth = draw_transmission(77, 3, (64, 64), "benchmark")
    noisy = truth + 0.1 * np.random.default_rng(0).standard_normal(truth.shape)
    settings = RestoreSettings(scan=Path("-"), sampler="mean", noise="0.1", quiet=True)
    with torch.no_grad():
        problem = pose(settings, noisy.astype(np.float32), model, torch.device("cpu"))
        found = restore_frame(settings, patch_prior(model, 2**30, "average"), model, problem)
    assert psnr(found.mean.numpy(), truth) > psnr(noisy, truth) + 6
    slope = np.polyfit(truth.ravel(), found.mean.numpy().ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.1)


def denoiser_file(tmp_path, target="v"):
    """An untrained network that sees the noisy frame."""
    network = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "patch": 2}
    extra = {"pad": 0, "scale": SCALE, "noise": [0.02, 0.3]}
    spec = ModelSpec(network, "denoise", 2, 32, target=target, schedule="karras", extra=extra)
    save_model(tmp_path / f"{target}.safetensors", spec.build().state_dict(), spec)
    return str(tmp_path / f"{target}.safetensors")


class Shrinks(torch.nn.Module):
    """Exact for white pixels of deviation 1 given the noisy frame: ignores x; 0 without a frame."""

    def forward(self, x, sigma, cond, step):
        if cond is None:
            return torch.zeros_like(x)
        return cond[:, :1] / (1 + cond[:, 1:2] ** 2)


def test_a_denoiser_sees_frame_and_noise(tmp_path):
    model = load_prior(denoiser_file(tmp_path), "cpu")
    model = Model(Shrinks(), model.spec, "exact", "exact")
    rng = np.random.default_rng(0)
    truth = 1 + SCALE * rng.standard_normal((H, W)).astype(np.float32)
    noisy = truth + 0.1 * rng.standard_normal(truth.shape).astype(np.float32)
    best = 1 + (noisy - 1) / (1 + (0.1 / SCALE) ** 2)
    for sampler, scale in (("ddim", 1.0), ("ddpm", 1.0), ("mean", 1.0), ("ddim", 0.5)):
        settings = RestoreSettings(
            scan=Path("-"), sampler=sampler, scale=scale, noise="0.1", **QUICK
        )
        problem = pose(settings, noisy, model, torch.device("cpu"))
        found = denoise_frame(settings, patch_prior(model, 2**30), model, problem)
        np.testing.assert_allclose(found.mean, 1 + scale * (best - 1), atol=1e-4)
        assert (found.std is None) == (sampler == "mean")


def test_denoisers_run_from_the_command_line(tmp_path, caplog):
    scan = save(tmp_path / "scan.npy", smooth_frames(2))
    for target in ("eps", "x0", "mean"):
        mean, std = restored(
            RestoreSettings(
                scan=scan,
                model=denoiser_file(tmp_path, target),
                sampler="ddim",
                overwrite=True,
                noise="1.0",
                **QUICK,
            )
        )
        assert np.isfinite(mean).all() and (std is None) == (target == "mean")
    assert "outside of 0.02-0.3" in caplog.text
    with pytest.raises(UsageError, match="needs a prior"):
        workflow.run(RestoreSettings(scan=scan, task="deblur", model=denoiser_file(tmp_path)))
    hole = smooth_frames(1)
    hole[0, 3, 3] = np.nan
    scan = save(tmp_path / "hole.npy", hole)
    with pytest.raises(TxmError, match="missing pixels"):
        workflow.run(RestoreSettings(scan=scan, model=denoiser_file(tmp_path), quiet=True))


def test_even_noise_is_taken_off_by_the_prior_alone(exact):
    """From the frame itself, without guidance: mean and spread are the exact posterior's."""
    model = workflow.load_prior("bundled", "cpu")
    truth = smooth_frames(1)[0]
    noisy = truth + 0.1 * np.random.default_rng(4).standard_normal(truth.shape).astype(np.float32)
    options = {"scan": Path("-"), "noise": "0.1", "border": "empty", "quiet": True}
    settings = RestoreSettings(**options, samples=24, steps=15)
    problem = pose(settings, noisy, model, torch.device("cpu"))
    calls = []
    spy = lambda x, s, c, step: (calls.append(float(s)), model.denoiser(x, s, c, step))[1]  # noqa: E731
    found = restore_frame(settings, spy, model, problem)
    assert max(calls) == pytest.approx(0.1 / SCALE)
    once = restore_frame(
        settings.model_copy(update={"sampler": "mean"}), model.denoiser, model, problem
    )
    spread = float(found.std.square().mean().sqrt())
    assert rms(found.mean.numpy(), once.mean.numpy()) < 0.35 * spread  # 24 samples: 0.20
    assert spread == pytest.approx(rms(once.mean.numpy(), truth), rel=0.25)


def test_a_covered_frame_goes_on_beyond_its_edge(exact):
    settings = RestoreSettings(scan=Path("-"), sampler="mean", noise="0.1", quiet=True)
    model = workflow.load_prior("bundled", "cpu")
    problem = pose(settings, smooth_frames(1)[0], model, torch.device("cpu"))
    assert problem.measurement.y.shape == (1, 1, H + 32, W + 32)
    np.testing.assert_allclose(
        problem.measurement.y[0, 0, 15, 16:-16], problem.measurement.y[0, 0, 17, 16:-16]
    )
    assert restore_frame(settings, model.denoiser, model, problem).mean.shape == (H, W)


def test_the_spectrum_of_white_noise_is_flat():
    noise = 0.1 * np.random.default_rng(0).standard_normal((96, 128))
    k, power = radial_power(noise)
    assert (0 < k).all() and (k < 0.5).all()
    np.testing.assert_allclose(power[5:], 0.01, rtol=0.4)
    smooth = np.cumsum(np.cumsum(noise, 0), 1)
    _, low = radial_power(smooth)
    assert low[:2].mean() > 100 * low[-2:].mean()
