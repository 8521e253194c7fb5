"""Model files: what goes in comes out; pickles and misfits are refused in one line."""

import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import torch

from txmcorrect import weights
from txmcorrect.errors import ModelError
from txmcorrect.weights import (
    FORMAT,
    ModelSpec,
    load_model,
    read_tensors,
    save_model,
    write_tensors,
)

NETWORK = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "patch": 2}
SPEC = ModelSpec(NETWORK, "pair", 7, 32, target="eps", schedule="cosine", timesteps=50)


def built(spec=SPEC):
    torch.manual_seed(1)
    model = spec.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.fixture
def path(tmp_path):
    save_model(tmp_path / "model.safetensors", built().state_dict(), SPEC)
    return tmp_path / "model.safetensors"


def refused(path, condition="pair"):
    with pytest.raises(ModelError) as caught:
        load_model(path, condition)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_weights_come_back_in_single_precision_rounded_to_half(path):
    model = load_model(path, "pair")
    assert model.spec == SPEC
    assert not model.denoiser.training
    for name, value in built().state_dict().items():
        found = model.denoiser.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.equal(found, value.half().float())
    assert all(not p.requires_grad for p in model.denoiser.parameters())


def test_a_beam_that_is_remembered_comes_back_and_is_no_weight(tmp_path):
    beams = tuple(np.full((3, 8, w), w / 16, np.float32) for w in (8, 6))
    save_model(tmp_path / "m", built().state_dict(), SPEC, beams=beams)
    model = load_model(tmp_path / "m", "pair")
    assert [b.dtype for b in model.beams] == [np.float32] * 2
    assert all(np.array_equal(a, b) for a, b in zip(model.beams, beams, strict=True))
    assert model.denoiser.state_dict().keys() == built().state_dict().keys()


def test_weights_in_full_precision(tmp_path):
    state = built().state_dict()
    save_model(tmp_path / "m", state, SPEC, half=False)
    found = load_model(tmp_path / "m", "pair").denoiser.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_the_file_says_what_it_is(path):
    metadata = read_tensors(path)[1]
    assert metadata["format"] == FORMAT
    assert json.loads(metadata["spec"]) == asdict(SPEC)
    assert {"condition", "domain", "schedule", "target", "network"} <= asdict(SPEC).keys()


def test_the_hash_follows_the_content(path, tmp_path):
    other = {name: value + 1 for name, value in built().state_dict().items()}
    save_model(tmp_path / "other", other, SPEC)
    assert load_model(path, "pair").sha256 == load_model(str(path), "pair").sha256
    assert load_model(path, "pair").sha256 != load_model(tmp_path / "other", "pair").sha256


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "torch-legacy", "pickle"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, how):
    path, trap = tmp_path / "model.ckpt", tmp_path / "sprung"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        torch.save(Trap(trap), path, _use_new_zipfile_serialization=how == "torch")
    assert "pickled checkpoint" in refused(path)
    assert not trap.exists()


def test_files_that_are_no_models(tmp_path, path):
    assert "found none" in refused(tmp_path / "absent.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    assert "safetensors" in refused(cut)
    text = tmp_path / "text.safetensors"
    text.write_text("weights")
    assert "safetensors" in refused(text)
    assert "safetensors" in refused(tmp_path)
    other = tmp_path / "other.safetensors"
    write_tensors(other, {"a": torch.zeros(1)}, {"format": "somebody's"})
    assert "got somebody's" in refused(other)


@pytest.mark.parametrize(
    "spec",
    [
        None,
        "{",
        "[]",
        json.dumps({**asdict(SPEC), "colour": "red"}),
        json.dumps({**asdict(SPEC), "schedule": "steep"}),
        json.dumps({**asdict(SPEC), "network": {"width": 3}}),
    ],
)
def test_a_specification_that_cannot_be_is_refused(tmp_path, spec):
    path = tmp_path / "m"
    metadata = {"format": FORMAT} | ({"spec": spec} if spec else {})
    write_tensors(path, built().state_dict(), metadata)
    assert "specification" in refused(path)


def test_another_architecture_is_refused(tmp_path):
    path = tmp_path / "m"
    wider = ModelSpec({**NETWORK, "channels": 16}, "pair", 7, 32)
    save_model(path, built(wider).state_dict(), SPEC)
    assert "another architecture" in refused(path)
    state = built().state_dict()
    state.popitem()
    save_model(path, state, SPEC)
    assert "1 of" in refused(path)


def test_another_condition_is_refused(path):
    assert "--condition stack" in refused(path, "stack")


def test_a_condition_that_no_model_ships_for():
    with pytest.raises(ModelError, match="--condition unheard-of ships"):
        load_model("bundled", "unheard-of")


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def broken(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", broken)
    with pytest.raises(OSError, match="No space"):
        save_model(path, built().state_dict(), SPEC)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
