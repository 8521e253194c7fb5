"""`restore` of a stack as one volume, and of masked frequencies, with exact priors of smooth fields."""

import h5py
import numpy as np
import pytest
import torch

import txmcorrect.restore as workflow
import txmcorrect.restoring.stack as stack
from txmcorrect.config import RestoreSettings, UsageError
from txmcorrect.diffusion.denoiser import per_item
from txmcorrect.errors import TxmError
from txmcorrect.physics import fourier_mask
from txmcorrect.restoring.prior import SCALE, sample_spec
from txmcorrect.simulate import bodies
from txmcorrect.weights import Model, ModelSpec, save_model

N, H, W = 8, 16, 20


class Smooth(torch.nn.Module):
    """Exact denoiser of periodic smooth planes of unit deviation."""

    def forward(self, x, sigma, cond, step):
        ky, kx = (torch.fft.fftfreq(n) for n in x.shape[-2:])
        power = (0.003 + ky[:, None] ** 2) ** -1.5 * (0.003 + kx**2) ** -1.5
        power = power / power.mean()
        return torch.fft.ifft2(torch.fft.fft2(x) * (power / (power + per_item(sigma, x) ** 2))).real


@pytest.fixture
def exact(monkeypatch):
    model = Model(Smooth(), sample_spec(), "exact", "exact")
    monkeypatch.setattr(workflow, "load_prior", lambda name, device: model)
    monkeypatch.setattr(workflow, "patch_prior", lambda model, memory, assembly: model.denoiser)
    monkeypatch.setattr(stack, "plane", lambda model, which=0.0: model.denoiser)


def truth(shape=(N, H, W), seed=0):
    """Transmission whose three axes are alike smooth."""
    z = np.random.default_rng(seed).standard_normal(shape)
    for axis in range(3):
        power = (0.003 + np.fft.fftfreq(shape[axis]) ** 2) ** -0.75
        spectrum = np.fft.fft(z, axis=axis) * np.moveaxis(power[:, None, None], 0, axis)
        z = np.fft.ifft(spectrum, axis=axis).real
    return (1 + 0.2 * z / z.std()).astype(np.float32)


def restored(tmp_path, frames, name="scan.npy", **options):
    np.save(tmp_path / name, frames)
    options = {"steps": 25, "samples": 6, "quiet": True, "overwrite": True, **options}
    settings = RestoreSettings(scan=tmp_path / name, out=tmp_path / "out.h5", **options)
    with h5py.File(workflow.run(settings).outputs[0]) as file:
        group = file["process/txmcorrect/restore"]
        std = group["std"][()] if "std" in group else None
        return file["exchange/data"][()], std


def rms(a, b=0.0):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_the_planes_across_help(tmp_path, exact):
    x = truth()
    y = x + 0.15 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    alone, _ = restored(tmp_path, y, noise="0.15")
    whole, std = restored(tmp_path, y, noise="0.15", across="planes")
    assert rms(whole, x) < 0.97 * rms(alone, x)
    assert rms(np.diff(whole - x, axis=0)) < 0.97 * rms(np.diff(alone - x, axis=0))
    assert whole.shape == std.shape == x.shape
    assert (tmp_path / "out.png").exists()


def test_thick_frames_are_thinned(tmp_path, exact):
    x = truth((8, H, W))
    thick = x.reshape(4, 2, H, W).mean(1)
    found, _ = restored(
        tmp_path, thick, task="superres", axis="stack", across="planes", noise="0.003"
    )
    assert found.shape == x.shape
    assert rms(found.reshape(4, 2, H, W).mean(1), thick) < 0.01
    assert rms(found, x) < 0.97 * rms(thick.repeat(2, 0), x)


@pytest.mark.parametrize("across", [None, "planes"])
def test_masked_frequencies(tmp_path, exact, across):
    x = truth((4, H, W))
    mask = fourier_mask("gaussian1d", (H, W), 2, 0.2, generator=torch.Generator().manual_seed(0))
    noise = np.random.default_rng(2).standard_normal((2, *x.shape)) * 0.01
    y = (np.fft.fft2(x, norm="ortho") + noise[0] + 1j * noise[1]) * mask.numpy()
    zero_filled = np.fft.ifft2(y, norm="ortho").real
    found, _ = restored(tmp_path, y, task="fourier", noise="0.01", across=across)
    assert rms(found, x) < 0.8 * rms(zero_filled, x)


def test_frequencies_must_be_complex_and_their_noise_known(tmp_path, exact):
    with pytest.raises(TxmError, match="expected complex frequencies"):
        restored(tmp_path, truth((2, H, W)), task="fourier", noise="0.1")
    with pytest.raises(TxmError, match="expected a number"):
        restored(tmp_path, np.fft.fft2(truth((2, H, W))), task="fourier")


def test_volumes_from_nothing(tmp_path, exact):
    settings = RestoreSettings(
        task="generate", out=tmp_path / "new.h5", across="planes", size=32, number=12, steps=30,
        samples=1, quiet=True,
    )  # fmt: skip
    with h5py.File(workflow.run(settings).outputs[0]) as file:
        made = file["exchange/data"][()]
    assert made.shape == (12, 32, 32)
    assert made.std() == pytest.approx(SCALE, rel=0.5)
    a, b = made[:-1] - made.mean(), made[1:] - made.mean()
    assert (a * b).mean() > 0.5 * made.var()  # neighbouring frames belong together


def test_a_killed_volume_goes_on(tmp_path, exact, monkeypatch):
    x = truth((4, H, W))
    options = {"noise": "0.1", "across": "planes", "steps": 4, "samples": 2}
    whole = restored(tmp_path, x, **options)
    draw = stack.draw_volumes

    def killed(folder, shape, samplers, report):
        def tell(stage, done, total):
            if done == 10:
                raise KeyboardInterrupt

        return draw(folder, shape, samplers, tell)

    monkeypatch.setattr(stack, "draw_volumes", killed)
    with pytest.raises(KeyboardInterrupt):
        restored(tmp_path, x, **options)
    assert (tmp_path / "out.h5.part" / "draw-1.json").exists()
    monkeypatch.setattr(stack, "draw_volumes", draw)
    for a, b in zip(whole, restored(tmp_path, x, **options), strict=True):
        np.testing.assert_array_equal(a, b)


def test_slices_of_any_unit_by_one_model(tmp_path):
    """An untrained model of slices: a reconstruction in 1/um comes out in 1/um."""
    network = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "patch": 2}
    extra = {"pad": 4, "scale": bodies.SCALE}
    spec = ModelSpec(network, "slice", 3, 32, schedule="karras", extra=extra)
    save_model(tmp_path / "m.safetensors", spec.build().state_dict(), spec)
    body = bodies.benchmark_body(0, 0, (N, W)).volume(N, W)
    given = {"model": str(tmp_path / "m.safetensors"), "samples": 1, "steps": 3}
    one, _ = restored(tmp_path, body, noise=str(float(body.max()) * 0.01), **given)
    ten, _ = restored(tmp_path, 10 * body, noise=str(float(body.max()) * 0.1), **given)
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-3, atol=1e-4 * ten.max())


def test_what_a_volume_needs(tmp_path, exact):
    x = truth((2, H, W))
    with pytest.raises(UsageError, match="ddnm only"):
        restored(tmp_path, x, across="planes", guidance="dps")
    with pytest.raises(UsageError, match="drawn by pc"):
        restored(tmp_path, x, across="planes", sampler="mean")
    with pytest.raises(UsageError, match="--across"):
        restored(tmp_path, x, task="superres", axis="stack")
