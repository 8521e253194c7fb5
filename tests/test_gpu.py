"""The same numbers on a GPU: operators, projector, background, restoration, volumes, training.

`make test-gpu`, where there is one. What runs through networks may use TF32 there.
"""

import copy
import math

import h5py
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from test_physics import operators

from txmcorrect import restore, tomo, train
from txmcorrect.background.correction import correct_scan
from txmcorrect.config import (
    CorrectSettings,
    RestoreSettings,
    TomoSettings,
    TrainSettings,
    load_settings,
)
from txmcorrect.formats.corrected import read_result
from txmcorrect.physics import inner
from txmcorrect.recon.fbp import fbp
from txmcorrect.recon.geometry import FanBeam, ParallelBeam
from txmcorrect.recon.iterative import mlem, sirt
from txmcorrect.recon.projector import Projector
from txmcorrect.simulate import simulate_scan
from txmcorrect.simulate.bodies import benchmark_body
from txmcorrect.synthesize import write_scan
from txmcorrect.weights import read_tensors

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TURN = torch.arange(60) * math.pi / 60


def there(thing):
    """A copy with every tensor, however deep, on the GPU."""
    if isinstance(thing, torch.Tensor):
        return thing.to(DEVICE)
    if not hasattr(thing, "__dict__"):
        return thing
    moved = copy.copy(thing)
    for name, value in vars(thing).items():
        object.__setattr__(moved, name, there(value))
    return moved


@pytest.mark.parametrize("name", list(operators()))
def test_operators(name):
    operator, shape = operators()[name]
    moved, generator = there(operator), torch.Generator().manual_seed(1)
    channels = 3 if name == "channel mix" else 1
    x = torch.randn(2, channels, *shape, generator=generator, dtype=torch.float64)
    y = operator.A(x)
    v = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    assert torch.allclose(moved.A(x.to(DEVICE)).cpu(), y, atol=1e-10)
    back = moved.A_adjoint(v.to(DEVICE)).cpu()
    assert torch.allclose(back, operator.A_adjoint(v), atol=1e-10)
    assert torch.allclose(inner(y, v), inner(x.to(back.dtype), back), rtol=1e-10)


@pytest.mark.parametrize("kind", ["parallel", "fan"])
def test_projector_and_reconstructions(kind):
    beam = ParallelBeam(TURN, 71, 33.0) if kind == "parallel" else FanBeam(2 * TURN, 71, 150.0)
    pair, moved = Projector(beam, 64), Projector(there(beam), 64)
    x = torch.from_numpy(benchmark_body(1, 2, (64, 64)).axial(3.0, 64))[None]
    y = pair.A(x)
    v = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(moved.A(x.to(DEVICE)).cpu(), y, atol=1e-4)
    back = moved.A_adjoint(v.to(DEVICE))
    left, right = (y.double() * v).sum(), (x.double() * back.cpu()).sum()
    assert abs(left - right) < 1e-5 * abs(left)
    for method in (sirt, mlem):
        ours, theirs = method(pair, y, 20), method(moved, y.to(DEVICE), 20).cpu()
        assert torch.allclose(ours, theirs, atol=1e-3 * float(ours.max()))
    if kind == "parallel":
        ours, theirs = fbp(beam, 64, y), fbp(moved.beam, 64, y.to(DEVICE)).cpu()
        assert torch.allclose(ours, theirs, atol=1e-3 * float(ours.max()))


@pytest.mark.parametrize("condition", ["stack", "pair"])
def test_correct(tmp_path, condition):
    """Backgrounds agree to a tenth of a per cent, spreads to a tenth of themselves."""
    path = tmp_path / "scan.h5"
    write_scan(path, simulate_scan("mosaic-sparse", shape=(128, 160), seed=3))
    logs, spreads = {}, {}
    for device in ("cpu", DEVICE):
        out = tmp_path / f"{device}-out.h5"
        settings = CorrectSettings(
            scans=[path], out=out, device=device, condition=condition, refs=None, quiet=True
        )
        correct_scan(settings, path, out)
        with read_result(out) as result:
            keys = result.key_index
            logs[device] = np.stack([result.log_background(i) for i in keys])
            spreads[device] = np.stack([result.log_std(i) for i in keys])
    assert np.abs(logs["cpu"] - logs[DEVICE]).max() < 2e-3
    assert np.sqrt(np.mean((logs["cpu"] - logs[DEVICE]) ** 2)) < 1e-3
    assert np.median(np.abs(spreads[DEVICE] / spreads["cpu"] - 1)) < 0.1


@pytest.mark.parametrize(
    "task", [{}, {"task": "superres", "factor": 2}, {"task": "deblur", "psf": 1.5}]
)
def test_restore(tmp_path, task):
    rng, found = np.random.default_rng(0), {}
    frames = simulate_scan("mosaic-sparse", shape=(64, 96), grid=(2, 2), seed=3).transmission
    path = tmp_path / "scan.npy"
    np.save(path, (frames[1:2] + 0.03 * rng.standard_normal((1, 64, 96))).astype(np.float32))
    for device in ("cpu", DEVICE):
        out = tmp_path / f"{device}-out.h5"
        restore.run(
            RestoreSettings(
                scan=path, out=out, device=device, samples=2, steps=8, quiet=True, **task
            )
        )
        with h5py.File(out) as file:
            found[device] = file["exchange/data"][()]
    off = found["cpu"] - found[DEVICE]
    assert np.sqrt(np.mean(off**2)) < 3e-3  # a tenth of the noise


@pytest.mark.parametrize("method", ["fbp", "tpdm"])
def test_tomo(tmp_path, method):
    body = benchmark_body(1, 2, (16, 64))
    lines = Projector(ParallelBeam(TURN, 64), 64).A(torch.from_numpy(body.volume(16, 64)))
    path, found = tmp_path / "scan.h5", {}
    with h5py.File(path, "w") as file:
        file["exchange/data"] = torch.exp(-lines).numpy().swapaxes(0, 1)
        file["exchange/theta"] = np.rad2deg(TURN.numpy())
    for device in ("cpu", DEVICE):
        out = tmp_path / f"{device}-out.h5"
        more = {"draws": 1, "levels": 8} if method == "tpdm" else {}
        tomo.run(
            TomoSettings(
                scans=[path],
                out=out,
                method=method,
                device=device,
                flats="none",
                center=31.5,
                quiet=True,
                **more,
            )
        )
        with h5py.File(out) as file:
            found[device] = file["exchange/data"][()]
    off = found["cpu"] - found[DEVICE]
    assert np.sqrt(np.mean(off**2)) < 0.02 * np.sqrt(np.mean(found["cpu"] ** 2))


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_goes_on(tmp_path, precision):
    """Interrupted and resumed on the GPU ends at the weights of a run in one piece."""

    def run(out, **given):
        tiny = {
            "network": {"channels": 8, "multipliers": [1, 2], "attention": [1], "patch": 4},
            "dataset": {"size": 16, "workers": 0},
        }
        common = {"steps": 6, "batch": 4, "warmup": 2, "quiet": True, "device": DEVICE}
        settings = load_settings(
            TrainSettings,
            {**tiny, **common, "precision": precision, "out": tmp_path / out, **given},
        )
        train.run(settings)
        AcceleratorState._reset_state(reset_partial_state=True)
        return read_tensors(tmp_path / out / "checkpoint.safetensors")[0]

    whole = run("whole")
    run("parts", max_steps=3)
    parts = run("parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.allclose(value.float(), parts[name].float(), rtol=1e-3, atol=1e-5), name
