"""Training: resumable to the bit, the same for any number of processes, and refusing what cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from filelock import FileLock

from txmcorrect import train, weights
from txmcorrect.config import DataSettings, TrainSettings, load_settings
from txmcorrect.errors import ModelError, OutputError, TxmError
from txmcorrect.restoring.prior import from_prior, load_prior, to_prior
from txmcorrect.training import loop
from txmcorrect.training.batches import PRIORS, Batches, make_prior_batch
from txmcorrect.training.checkpoint import Average
from txmcorrect.training.validate import Validation
from txmcorrect.weights import load_model, read_tensors

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "steps": 12,
    "batch": 4,
    "warmup": 2,
    "seed": 3,
    "device": "cpu",
    "quiet": True,
    "network": {
        "channels": 8,
        "multipliers": [1, 2],
        "attention": [1],
        "patch": 4,
        "dropout": 0.1,
    },
    "dataset": {"size": 16, "workers": 0},
}


@pytest.fixture(autouse=True)
def _fresh_accelerate(monkeypatch):
    """Accelerate keeps one state a process; a run's log here has every step."""
    monkeypatch.setattr(train, "REPORT_EVERY", 1)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def no_validation(monkeypatch):
    monkeypatch.setattr(train, "validate", lambda *_: Validation(0.5, 2.0, 3.0))


def settings_of(out, **given):
    return load_settings(TrainSettings, {**TINY, "out": out, **given})


def run(out, **given):
    return train.run(settings_of(out, **given))


def tensors(folder):
    return read_tensors(folder / "checkpoint.safetensors")[0]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return {line["step"]: line["loss"] for line in log_of(folder) if "loss" in line}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 12 steps in one go, with real validation."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "REPORT_EVERY", 1)
        result = run(folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert result.outputs == (folder / "model.safetensors",)
    assert "step 12 of 12" in result.message
    return folder


def test_what_a_run_leaves(straight):
    names = {path.name for path in straight.iterdir()} - {"lock"}
    assert names == {
        "checkpoint.safetensors",
        "log.jsonl",
        "model.safetensors",
        "settings.json",
        "validation-0000012.png",
    }
    assert list(losses(straight)) == list(range(1, 13))
    (scores,) = [line for line in log_of(straight) if "validation/loss" in line]
    assert 0 < scores["validation/error_percent"]
    assert 0 < scores["validation/base_error_percent"]
    assert json.loads((straight / "settings.json").read_text())["seed"] == 3
    model = load_model(straight / "model.safetensors", "pair")
    assert model.spec.size == 16
    average = {
        n.removeprefix("average."): t for n, t in tensors(straight).items() if "average" in n
    }
    assert all(torch.equal(model.denoiser.state_dict()[n], t.half()) for n, t in average.items())


@pytest.mark.parametrize("cut", [1, 6])
def test_two_parts_equal_the_whole_exactly(straight, no_validation, tmp_path, cut):
    run(tmp_path, max_steps=cut)
    run(tmp_path)
    assert same(tensors(tmp_path), tensors(straight))
    assert losses(tmp_path) == losses(straight)


def test_ctrl_c_loses_nothing(straight, no_validation, tmp_path, monkeypatch):
    take = loop.Loop.step

    def interrupted(self, batch, step):
        if step == 7:
            raise KeyboardInterrupt
        return take(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert list(losses(tmp_path)) == list(range(1, 8))
    run(tmp_path)
    assert same(tensors(tmp_path), tensors(straight))


def test_the_log_goes_on_where_the_checkpoint_is(straight, no_validation, tmp_path):
    """A kill comes after lines that the last checkpoint knows nothing of."""
    run(tmp_path, max_steps=5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 99}\n{"step": 7, "loss": 99}\n{"st')
    run(tmp_path)
    assert losses(tmp_path) == losses(straight)


def test_workers_and_micro_batches_change_nothing_but_rounding(straight, no_validation, tmp_path):
    run(tmp_path / "workers", max_steps=3, dataset={"size": 16, "workers": 1})
    assert losses(tmp_path / "workers") == pytest.approx(
        {step: loss for step, loss in losses(straight).items() if step <= 3}
    )
    plain = {**TINY["network"], "dropout": 0.0}
    run(tmp_path / "whole", max_steps=4, network=plain)
    run(tmp_path / "parts", max_steps=4, network=plain, accumulate=2)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_an_own_seed_is_another_training(straight, no_validation, tmp_path):
    run(tmp_path, seed=4, max_steps=1)
    assert losses(tmp_path)[1] != losses(straight)[1]


def test_other_settings_are_refused(no_validation, tmp_path):
    run(tmp_path, max_steps=1)
    with pytest.raises(OutputError, match=r"other settings \(lr\)"):
        run(tmp_path, lr=1e-5)
    run(tmp_path, max_steps=2, checkpoint_every=1)  # decides nothing
    run(tmp_path, lr=1e-5, max_steps=1, overwrite=True)
    assert list(losses(tmp_path)) == [1]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(OutputError, match="another run"):
        run(tmp_path)


def test_stops_by_the_clock(no_validation, tmp_path):
    result = run(tmp_path, max_minutes=1e-9)
    assert "step 1 of 12" in result.message


# --- fine-tuning, and files that are refused ----------------------------------------------------


def test_fine_tuning_starts_from_the_weights_given(straight, no_validation, tmp_path):
    start = load_model(straight / "model.safetensors", "pair").denoiser.state_dict()
    run(tmp_path, init=str(straight / "model.safetensors"), max_steps=1, lr=1e-12)
    for name, value in tensors(tmp_path).items():
        if name.startswith("model."):
            torch.testing.assert_close(value, start[name.removeprefix("model.")], rtol=0, atol=1e-9)


def test_fine_tuning_another_architecture_is_refused(straight, tmp_path):
    with pytest.raises(ModelError, match="architecture differs"):
        run(
            tmp_path,
            init=str(straight / "model.safetensors"),
            network={**TINY["network"], "channels": 12},
        )


@pytest.fixture
def harvest(tmp_path):
    """What `prepare` writes of a beamline with five references, as a training needs it."""
    path, rng = tmp_path / "data.h5", np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        for split in ("train", "validation"):
            group = file.create_group(f"{split}/24x24")
            group["transmission"] = np.exp(-rng.random((4, 24, 24))).astype(np.float32)
            group["reference"] = np.exp(rng.normal(0, 0.1, (5, 24, 24))).astype(np.float32)
    return path


def test_the_stack_model_goes_on_from_the_bundled_one_on_ones_own_beamline(
    harvest, no_validation, tmp_path
):
    """What it was found to be off by stays; the references are remembered."""
    given = {"config": ROOT / "configs/finetune.yaml", "data": harvest, "out": tmp_path / "run"}
    short = {"steps": 1, "batch": 8, "quiet": True}
    result = train.run(load_settings(TrainSettings, {**given, **short}))
    assert "step 1 of 1" in result.message
    bundled = load_model("bundled", "stack")
    mine = load_model(tmp_path / "run" / "model.safetensors", "stack")
    for name, value in bundled.denoiser.state_dict().items():
        torch.testing.assert_close(
            mine.denoiser.state_dict()[name], value, rtol=2e-3, atol=1e-4, msg=name
        )
    for table in ("doubt", "spread"):
        assert mine.spec.extra[table] == bundled.spec.extra[table]
    assert bundled.beams == () and [b.shape for b in mine.beams] == [(5, 24, 24)]


def test_priors_learn_from_the_simulator_alone(harvest, tmp_path):
    with pytest.raises(TxmError, match="leave --data away"):
        run(tmp_path / "run", data=harvest, dataset={**TINY["dataset"], "condition": "sample"})


@pytest.mark.parametrize("as_checkpoint", [True, False])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, monkeypatch, as_checkpoint):
    def loaded(*_, **__):
        raise AssertionError("a pickle was loaded")

    evil = tmp_path / ("checkpoint.safetensors" if as_checkpoint else "model.pt")
    torch.save({"weights": torch.zeros(3)}, evil)
    monkeypatch.setattr(torch, "load", loaded)
    with pytest.raises(ModelError, match="pickled checkpoint"):
        run(tmp_path, init=None if as_checkpoint else str(evil))


def test_a_checkpoint_of_another_architecture_is_refused(no_validation, tmp_path):
    run(tmp_path, max_steps=1)
    path = tmp_path / "checkpoint.safetensors"
    stored, metadata = read_tensors(path)
    name = next(n for n in stored if n.startswith("model.") and n.endswith("first.weight"))
    weights.write_tensors(path, {**stored, name: stored[name][:-1]}, metadata)
    with pytest.raises(ModelError, match="another architecture"):
        run(tmp_path)


# --- numbers ------------------------------------------------------------------------------------


def spoil(monkeypatch, steps):
    """Make the loss no number at some steps."""
    loss, count = loop.Loop._loss, iter(range(1000))
    monkeypatch.setattr(
        loop.Loop,
        "_loss",
        lambda self, *a: loss(self, *a) * (torch.nan if next(count) in steps else 1),
    )


def test_a_step_without_a_finite_gradient_is_passed_over(no_validation, tmp_path, monkeypatch):
    spoil(monkeypatch, {2})
    run(tmp_path, max_steps=5)
    assert all(torch.isfinite(t).all() for t in tensors(tmp_path).values())
    found = losses(tmp_path)
    assert [step for step, loss in found.items() if loss != loss] == [3]


def test_training_that_diverges_is_given_up(no_validation, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE", 3)
    spoil(monkeypatch, range(4, 1000))
    with pytest.raises(TxmError, match="training diverged: 3 steps"):
        run(tmp_path)
    assert all(torch.isfinite(t).all() for t in tensors(tmp_path).values())


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}], ids=str
)
def test_other_arithmetic_is_nearly_the_same(straight, no_validation, tmp_path, options):
    run(tmp_path, max_steps=3, **options)
    for step, loss in losses(tmp_path).items():
        assert loss == pytest.approx(losses(straight)[step], rel=0.05)


def test_the_gradient_scaler_is_resumed(no_validation, tmp_path):
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            run(tmp_path / name, max_steps=stop, precision="fp16")
    assert same(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 5, "accumulate": 2}, "--batch 5 must be a multiple"),
        ({"tracker": "abacus"}, "--tracker abacus"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, given, said):
    with pytest.raises(TxmError, match=said) as caught:
        run(tmp_path, **given)
    assert "\n" not in str(caught.value)


def test_an_unknown_schedule_is_refused(tmp_path):
    with pytest.raises(TxmError, match=r"diffusion\.schedule: expected one of .*linear"):
        run(tmp_path, diffusion={"schedule": "steep"})


def test_tensorboard_gets_what_the_log_gets(no_validation, tmp_path):
    pytest.importorskip("tensorboard")
    run(tmp_path, max_steps=2, tracker="tensorboard")
    assert list(tmp_path.rglob("events.out.tfevents*"))
    assert list(losses(tmp_path)) == [1, 2]


def test_the_average_is_short_at_first_and_long_later():
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0)
        average = Average(module, 0.9)
        module.weight.fill_(1)
    average.update(module, 0)
    assert float(average.state["weight"]) == pytest.approx(1 - 1 / 10)
    before = float(average.state["weight"])
    with torch.no_grad():
        module.weight.fill_(3)
    average.update(module, 10_000)
    assert float(average.state["weight"]) == pytest.approx(0.9 * before + 0.1 * 3)


def test_the_learning_rate_warms_up_and_decays():
    settings = TrainSettings(lr=1.0, warmup=10, steps=100)
    rates = [loop.learning_rate(settings, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(rates[9], rel=0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)
    assert loop.learning_rate(TrainSettings(lr=1.0, warmup=0), 0) == pytest.approx(1.0)


def test_levels_are_spread_over_the_schedule_and_conditions_dropped_as_asked():
    settings = settings_of("unused", diffusion={"uncon_ratio": 0.25})
    sigmas = settings_sigmas = train.spec_of(settings).sigmas()
    batch = Batches(settings)[0]
    dropped, places = [], []
    for step in range(150):
        sigma, eps, keep = loop.draw_levels(settings, sigmas, batch, step)
        places.append(torch.searchsorted(settings_sigmas.float(), sigma).sort().values)
        dropped.append(1 - keep)
        assert eps.shape == batch.x0.shape
        assert not torch.equal(eps[0], eps[1])
    quarter = torch.stack(places) // (len(sigmas) // 4)
    assert float((quarter.unique(dim=0).sum(1) >= 5).float().mean()) > 0.5  # 0+1+2+3 or nearly
    assert float(torch.cat(dropped).mean()) == pytest.approx(0.25, abs=0.06)
    again = loop.draw_levels(settings, sigmas, batch, 149)
    assert torch.equal(again[0], sigma)
    assert torch.equal(again[1], eps)


# --- processes ----------------------------------------------------------------------------------


def start(command, folder, cwd, steps, *flags):
    """Train in processes of their own; returns what they print."""
    path = folder.with_suffix(".yaml")
    given = {**TINY, "network": {**TINY["network"], "dropout": 0.0}}
    path.write_text(yaml.safe_dump({**given, "steps": steps, "out": str(folder)}))
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    whole = [*command, "train", "--config", str(path), *flags]
    done = subprocess.run(whole, env=env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_learn_as_one_does(no_validation, tmp_path, monkeypatch):
    """Every 20th loss is logged; rounding grows a little on the way."""
    pair = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "txmcorrect"]
    start(pair, tmp_path / "two", tmp_path, 40)
    monkeypatch.setattr(train, "REPORT_EVERY", 20)
    run(tmp_path / "one", steps=40, network={**TINY["network"], "dropout": 0.0})
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(two) == [20, 40]
    assert two == pytest.approx(one, rel=2e-3)


def test_accelerate_launches_it_from_the_repository(tmp_path):
    command = ["accelerate", "launch", "--cpu", "txmcorrect"]
    said = start(command, tmp_path / "run", ROOT, 2)
    assert list(losses(tmp_path / "run")) == [2]
    assert "step 2 of 2" in said


def test_accelerate_launches_the_module_from_anywhere(tmp_path):
    command = ["accelerate", "launch", "--cpu", "-m", "txmcorrect"]
    said = start(command, tmp_path / "run", tmp_path, 2, "--dry-run")
    assert yaml.safe_load(said)["steps"] == 2


def test_a_prior_of_samples_learns_patches_and_their_places(tmp_path):
    data = {**TINY["dataset"], "condition": "sample", "patches": [16, 24], "shares": [0.5, 0.5]}
    diffusion = {"schedule": "karras", "levels": "lognormal", "uncon_ratio": 0.0}
    settings = settings_of(tmp_path / "run", dataset=data, diffusion=diffusion)
    batches = [Batches(settings)[i] for i in range(6)]
    assert {b.x0.shape[-1] for b in batches} == {16, 24}
    again = Batches(settings)[3]
    assert all(torch.equal(a, b) for a, b in zip(again.tensors, batches[3].tensors, strict=True))
    y = torch.cat([b.cond[:, 0, :, 0].flatten() for b in batches])
    assert float(y.min()) >= -1 and float(y.max()) <= 1 and float(y.std()) > 0.2
    x0 = torch.cat([b.x0.flatten() for b in batches])
    assert 0.3 < float(x0.std()) < 3  # about unit variance
    train.run(settings)
    model = load_prior(str(tmp_path / "run" / "model.safetensors"), "cpu")
    assert model.spec.extra["pad"] == 16 and model.spec.domain == "transmission"
    assert torch.equal(from_prior(to_prior(torch.ones(1), model), model), torch.ones(1))


@pytest.mark.parametrize("condition", ["slice", "sinogram", "denoise"])
def test_priors_and_denoisers_draw_what_they_are_told(condition):
    data = DataSettings(condition=condition, patches=(32,), shares=(1.0,), pad=8, sides=(80, 96))
    settings = TrainSettings(batch=6, dataset=data)
    one, again = (make_prior_batch(settings, 3, "train") for _ in range(2))
    for a, b in zip(one.tensors, again.tensors, strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()
    assert one.x0.shape == (6, 1, 32, 32)
    assert one.cond.shape == (6, PRIORS[condition], 32, 32)
    if condition == "denoise":  # the frame shown is the target with the noise that is stated
        noise = (one.cond[:, :1] - one.x0) / one.cond[:, 1:]
        assert noise.std() == pytest.approx(1, abs=0.05)
        return
    lost = settings.model_copy(
        update={"dataset": data.model_copy(update={"position": False, "images": 1})}
    )
    batch = make_prior_batch(lost, 3, "train")
    assert (batch.cond[:, -2:] == 0).all() and (one.cond[:, -2:] != 0).any()
    assert torch.equal(
        make_prior_batch(lost, 3, "validate").x0,
        make_prior_batch(settings, 3, "validate").x0,
    )


def test_images_smaller_than_their_patches_are_refused(tmp_path):
    data = DataSettings(condition="denoise", patches=(64,), shares=(1.0,), pad=0)
    with pytest.raises(TxmError, match="expected at most 48 pixels"):
        train.run(TrainSettings(out=tmp_path / "run", dataset=data, steps=1))


@pytest.mark.parametrize("able", [True, False])
def test_says_that_bf16_is_slow_here(tmp_path, monkeypatch, caplog, no_validation, able):
    monkeypatch.setattr(train, "_has_bf16", lambda: able)
    with caplog.at_level("WARNING"):
        run(tmp_path, precision="bf16", max_steps=1)
    assert ("--precision no" in caplog.text) is not able
