"""Model files: one safetensors file whose metadata says what the network is. Pickles are refused."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from txmcorrect.diffusion.denoiser import NetworkDenoiser, Preconditioning, Target
from txmcorrect.diffusion.schedules import SCHEDULES
from txmcorrect.diffusion.unet import UNet
from txmcorrect.errors import ModelError

FORMAT = "txmcorrect-model-1"
BEAM = "beam."  # tensors that are no weights
Beams = tuple[NDArray[np.float32], ...]
NONE = "none"  # instead of a model: the fit alone
NONE_SIZE = 64  # long side of the fit's working grid in pixels, that of the bundled stack model


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build and use a network.

    `network` are the keyword arguments of `UNet`; `condition` names what it sees; `size` is the
    long side of the working grid in pixels; `schedule` and `timesteps` its noise levels.
    """

    network: dict[str, Any]
    condition: str
    cond_channels: int
    size: int
    channels: int = 1
    target: Target = "v"
    schedule: str = "linear"
    timesteps: int = 1000
    domain: str = "log-background residual"
    extra: dict[str, Any] = field(default_factory=dict)

    def build(self) -> NetworkDenoiser:
        """An untrained denoiser of this shape."""
        shape: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.network.items()
        }
        network = UNet(self.channels + self.cond_channels, self.channels, **shape)
        return NetworkDenoiser(network, Preconditioning(self.target), self.cond_channels)

    def sigmas(self) -> Tensor:
        """Ascending noise levels `(timesteps,)`."""
        return SCHEDULES[self.schedule](self.timesteps)


@dataclass(frozen=True)
class Model:
    """A trained denoiser, what it is, and the hash of its file.

    `beams`: references of the beamline that it was trained on, natural log without its mean over what is
    lit, `(k, h, w)` of each shape of the working grid.
    """

    denoiser: NetworkDenoiser
    spec: ModelSpec
    sha256: str
    origin: str
    beams: Beams = ()

    @property
    def is_fit_alone(self) -> bool:
        """Whether there is no network at all (`no_model`)."""
        return self.origin == NONE


class _NoNetwork(torch.nn.Module):
    """Stands where there is no network."""

    def forward(self, *given: Tensor) -> Tensor:
        raise ModelError("the fit alone has no network to ask")


def no_model() -> Model:
    """The fit alone, as the stack condition has it: no weights are read, no references are remembered.

    How far such fits were found to be off (`doubt`) stands in the header of the bundled stack model.
    """
    path, doubt = bundled_path("stack"), {}
    if path.is_file():
        with safe_open(path, framework="pt") as file:  # maps the file: no tensor is touched
            doubt = json.loads((file.metadata() or {})["spec"])["extra"].get("doubt", {})
    spec = ModelSpec({}, "stack", 0, NONE_SIZE, extra={"doubt": doubt})
    return Model(NetworkDenoiser(_NoNetwork(), Preconditioning("mean"), 0), spec, NONE, NONE)


def save_model(
    path: Path, state: dict[str, Tensor], spec: ModelSpec, half: bool = True, beams: Beams = ()
) -> None:
    """Write weights (fp16 by default) and specification to `path`, atomically; `beams` as of `Model`."""
    kind = torch.float16 if half else torch.float32
    images = {f"{BEAM}{k}": torch.from_numpy(beam) for k, beam in enumerate(beams)}
    tensors = {n: t.detach().cpu().to(kind).contiguous() for n, t in {**state, **images}.items()}
    metadata = {"format": FORMAT, "spec": json.dumps(asdict(spec))}
    write_tensors(path, tensors, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside its place, flush it to disk, then rename."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, beside, metadata)
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Raises
    ------
    ModelError : missing, cut short, or not safetensors (a pickle, say: it is never loaded).
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise ModelError(f"{path}: expected a model file (.safetensors), found none") from None
    except (SafetensorError, OSError) as error:
        kind = "a pickled checkpoint, which may run code when loaded" if _is_pickle(path) else error
        raise ModelError(
            f"{path}: expected a safetensors model written by `train`, got {kind}; it was not loaded"
        ) from None


def _is_pickle(path: Path) -> bool:
    """Whether the file starts as pickles do: protocol byte, or the zip that torch.save makes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4)
    return head[:1] == b"\x80" or head == b"PK\x03\x04"


def bundled_path(condition: str) -> Path:
    """Where the weights that ship with the package lie."""
    folder = Path(str(resources.files("txmcorrect"))) / "models"
    return folder / f"{condition}.safetensors"


def gives(name: str | Path, sha256: str) -> bool:
    """Whether `bundled` or a file holds the weights of this hash today; `none` has no weights ever."""
    if str(name) == NONE:
        return sha256 == NONE
    paths = [Path(name)]
    if str(name) == "bundled":
        paths = list(bundled_path("").parent.glob("*.safetensors"))
    return any(p.is_file() and hashlib.sha256(p.read_bytes()).hexdigest() == sha256 for p in paths)


def condition_of(path: str | Path) -> str:
    """What the model in a file sees.

    Raises
    ------
    ModelError : not a model of ours.
    """
    return _built(read_tensors(Path(path))[1], Path(path))[0].condition


def load_model(name: str | Path, condition: str, device: str | torch.device = "cpu") -> Model:
    """Load `bundled` or a file, for a given condition, in float32, ready to use; `none`: see `no_model`.

    Raises
    ------
    ModelError : not a model of ours, other architecture than its own metadata says, or another
    condition than asked for.
    """
    if str(name) == NONE:
        if condition != "stack":
            raise ModelError(f"--model none: expected --condition stack, got {condition}")
        return no_model()
    path = bundled_path(condition) if str(name) == "bundled" else Path(name)
    if str(name) == "bundled" and not path.is_file():
        raise ModelError(
            f"no model for --condition {condition} ships with this version; give --model"
        )
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no format entry")
        raise ModelError(f"{path}: expected a {FORMAT} file, got {found}; train one with `train`")
    spec, denoiser = _built(metadata, path)
    if spec.condition != condition:
        raise ModelError(
            f"{path}: expected a model of --condition {condition}, got one of {spec.condition!r}"
        )
    beams = tuple(tensors.pop(n).float().numpy() for n in sorted(tensors) if n.startswith(BEAM))
    load_state(denoiser, tensors, path)
    denoiser.requires_grad_(False).eval()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    origin = "bundled" if str(name) == "bundled" else str(path)
    return Model(denoiser.to(device), spec, sha256, origin, beams)


def _built(metadata: dict[str, str], path: Path) -> tuple[ModelSpec, NetworkDenoiser]:
    """What a file says it is, and the empty network for it."""
    try:
        spec = ModelSpec(**json.loads(metadata["spec"]))
        spec.sigmas()
        return spec, spec.build()
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: expected a specification that this version knows, got {error!r}; "
            "train the model anew, or use the version that wrote it"
        ) from None


def load_state(denoiser: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a network with weights, which must fit exactly."""
    expected = {name: tuple(t.shape) for name, t in denoiser.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    odd = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
    if odd:
        raise ModelError(
            f"{path}: weights of another architecture: {len(odd)} of {len(expected)} tensors differ, "
            f"first {odd[0]} (expected {expected.get(odd[0])}, got {given.get(odd[0])})"
        )
    denoiser.load_state_dict({name: t.float() for name, t in tensors.items()})
