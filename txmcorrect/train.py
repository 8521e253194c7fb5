"""`train`: a denoiser of log backgrounds, from the simulator, a user's own frames, or both."""

from __future__ import annotations

import json
import logging
import platform
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration
from filelock import FileLock, Timeout
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from txmcorrect import __version__
from txmcorrect.background.conditions import CHANNELS
from txmcorrect.config import TrainSettings
from txmcorrect.diffusion.schedules import SCHEDULES
from txmcorrect.errors import ModelError, OutputError, TxmError
from txmcorrect.result import Result
from txmcorrect.training.batches import PRIORS, scale_of, smallest_image
from txmcorrect.training.calibrate import Calibration, as_metadata, calibrate
from txmcorrect.training.checkpoint import Average, State, saved_settings
from txmcorrect.training.harvest import Harvest
from txmcorrect.training.loop import Clock, Loop, learning_rate
from txmcorrect.training.validate import Validation, validate
from txmcorrect.weights import Beams, Model, ModelSpec, load_model, save_model

log = logging.getLogger(__name__)
# Settings that may change between a run and its continuation without changing its result.
FREE = {"config", "device", "overwrite", "dry_run", "log_file", "verbose", "quiet", "out"}
FREE |= {"max_steps", "max_minutes", "checkpoint_every", "validate_every", "tracker", "compile"}
FREE |= {"calibrate"}
DOMAINS = {name: "transmission" for name in PRIORS} | {"slice": "attenuation"}
REPORT_EVERY = 20
TABLES = tuple(table.name for table in fields(Calibration))
BF16 = ("avx512_bf16", "amx_tile")  # instructions, as torch names them


def run(settings: TrainSettings) -> Result:
    """Train until `steps` (or --max-steps, --max-minutes); the same command goes on from there."""
    _check(settings)
    accelerator = _accelerator(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.out / "lock", timeout=0)
    if accelerator.is_main_process:
        try:
            lock.acquire()
        except Timeout:
            raise OutputError(
                f"{settings.out}: another run is training here; use another --out"
            ) from None
    try:
        return Training(settings, accelerator).run()
    finally:
        lock.release()
        accelerator.end_training()


def _check(settings: TrainSettings) -> None:
    if settings.dataset.condition in PRIORS and settings.data is not None:
        raise TxmError(
            f"--data {settings.data}: expected a training of the pair or the stack condition, got "
            f"{settings.dataset.condition}, which learns from the simulator alone; leave --data away"
        )
    data, least = settings.dataset, smallest_image(settings.dataset)
    if data.condition in PRIORS and least < max(data.patches):
        raise TxmError(
            f"dataset.patches: expected at most {least} pixels, the shortest side of an image with its "
            f"border, got {max(data.patches)}; raise dataset.sides or dataset.pad"
        )
    if settings.diffusion.schedule not in SCHEDULES:
        raise TxmError(f"diffusion.schedule: expected one of {', '.join(SCHEDULES)}")
    trackers = ["jsonl", *map(str, get_available_trackers())]
    if settings.tracker not in trackers:
        raise TxmError(
            f"--tracker {settings.tracker}: expected one of {', '.join(trackers)}; "
            "others need their package installed"
        )


def _accelerator(settings: TrainSettings) -> Accelerator:
    """Accelerate decides about processes and devices; --device cpu overrules a GPU."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TxmError("--device cuda: no CUDA device was found; use --device cpu")
    try:
        accelerator = Accelerator(
            cpu=settings.device == "cpu",
            mixed_precision=settings.precision,
            log_with=None if settings.tracker == "jsonl" else settings.tracker,
            project_config=ProjectConfiguration(str(settings.out)),
        )
    except ValueError as error:  # a precision that the device cannot do
        raise TxmError(f"--precision {settings.precision}: {error}; use bf16 or no") from None
    share = accelerator.num_processes * settings.accumulate
    if settings.batch % share:
        raise TxmError(
            f"--batch {settings.batch} must be a multiple of processes x --accumulate = {share}"
        )
    if accelerator.is_main_process:
        where = f"{accelerator.num_processes} process(es) on {accelerator.device.type}"
        log.info("training on %s, precision %s", where, settings.precision)
        if accelerator.device.type == "cpu" and settings.precision == "bf16" and not _has_bf16():
            log.warning(
                "this processor has no instructions for bf16, which may take ten times as long there; "
                "--precision no is for it"
            )
    return accelerator


def _has_bf16() -> bool:
    """Whether the processor multiplies bf16 by itself, as far as this torch can tell."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in BF16]
    return any(ask() for ask in asked if ask is not None) or not any(asked)


class Training:
    """State of a run between its first and last step."""

    def __init__(self, settings: TrainSettings, accelerator: Accelerator):
        self.settings, self.accelerator = settings, accelerator
        self.spec = spec_of(settings)
        torch.manual_seed(settings.seed)
        self.bare = self.spec.build()
        self.beams: Beams = ()
        if settings.init:
            self._start_from(settings.init)
        if settings.data is not None and settings.dataset.condition == "stack":
            self.beams = Harvest(settings.data, settings.dataset, "train").beams()
        model = self.bare.to(accelerator.device)
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.state = State(model, Average(model, settings.ema), optimizer)
        self.sigmas = self.spec.sigmas()
        # `evaluation` shares no memory with the model: validation uses the averaged weights.
        self.evaluation = self.spec.build().to(accelerator.device).eval().requires_grad_(False)
        self._resume()
        wrapped: Any = torch.compile(model) if settings.compile else model
        wrapped, prepared = accelerator.prepare(wrapped, optimizer)
        self.loop = Loop(
            settings, accelerator, wrapped, self.bare.preconditioning, prepared, self.sigmas
        )
        if self.scaler_state and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(self.scaler_state)

    @property
    def checkpoint(self) -> Path:
        return self.settings.out / "checkpoint.safetensors"

    @property
    def model_path(self) -> Path:
        return self.settings.out / "model.safetensors"

    def _start_from(self, origin: str) -> None:
        """Copy weights of the bundled model or a file; architectures must agree."""
        model = load_model(origin, self.settings.dataset.condition)
        if model.spec.build().state_dict().keys() != self.bare.state_dict().keys() or any(
            a.shape != b.shape
            for a, b in zip(
                model.denoiser.state_dict().values(), self.bare.state_dict().values(), strict=True
            )
        ):
            raise ModelError(f"--init {origin}: its architecture differs from this configuration's")
        self.bare.load_state_dict(model.denoiser.state_dict())
        known = {k: v for k, v in model.spec.extra.items() if k in TABLES}
        self.spec = replace(self.spec, extra={**self.spec.extra, **known})
        self.beams = model.beams

    def _resume(self) -> None:
        self.scaler_state: dict[str, Any] | None = None
        if not self.checkpoint.exists() or self.settings.overwrite:
            return
        before, now = _completed(saved_settings(self.checkpoint)), _comparable(self.settings)
        odd = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if odd:
            raise OutputError(
                f"{self.settings.out}: holds a run with other settings ({', '.join(odd)}); "
                "use another --out, or --overwrite to start anew"
            )
        self.scaler_state = self.state.load(self.checkpoint)
        log.info("going on from step %d", self.state.step)

    def run(self) -> Result:
        settings, main = self.settings, self.accelerator.is_main_process
        last = min(settings.steps, settings.max_steps or settings.steps)
        self._start_logs()
        clock = Clock(self.accelerator, settings.max_minutes)
        saved = self.state.step
        validation: Validation | None = None
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        shown = Progress(
            *columns,
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=settings.quiet or not main,
        )
        try:
            with shown:
                task = shown.add_task("training", total=last, completed=self.state.step, rate="")
                began, first = time.monotonic(), self.state.step
                for batch in self.loop.batches(self.state.step, last):
                    loss = self.loop.step(batch, self.state.step)
                    self.state.average.update(self.bare, self.state.step)
                    self.state.step += 1
                    step = self.state.step
                    rate = (step - first) / (time.monotonic() - began)
                    shown.update(task, completed=step, rate=f"loss {loss:.4f}, {rate:.2f} steps/s")
                    if step % REPORT_EVERY == 0 or step == last:
                        self._record({"loss": loss, "lr": learning_rate(settings, step)})
                    if step % settings.validate_every == 0 or step == last:
                        validation = self._validate()
                    if step % settings.checkpoint_every == 0:
                        self._save()
                        saved = step
                    if clock.over(step):
                        break
        finally:
            # A stop by hand loses nothing; the state is whole between steps. DDP ranks agree.
            if self.state.step != saved:
                self._save()
        return self._finish(validation)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        self.state.save(
            self.checkpoint,
            _comparable(self.settings),
            scaler.state_dict() if scaler is not None else None,
        )
        self._save_model(self.spec)

    def _validate(self) -> Validation | None:
        """Score the averaged weights (rank 0 only; the others wait at their next step)."""
        if not self.accelerator.is_main_process:
            return None
        self.evaluation.load_state_dict(self.state.average.state)
        picture = self.settings.out / f"validation-{self.state.step:07d}.png"
        scores = validate(self.evaluation, self.settings, self.sigmas, picture)
        self._record(
            {
                "validation/loss": scores.loss,
                "validation/error_percent": scores.error,
                "validation/base_error_percent": scores.base_error,
            }
        )
        return scores

    def _calibrate(self) -> None:
        """Measure how far the finished weights are from what they claim; store it with them."""
        settings = self.settings
        if settings.dataset.condition != "stack" or settings.calibrate == 0:
            return
        self.evaluation.load_state_dict(self.state.average.state)
        model = Model(self.evaluation, self.spec, "", str(self.model_path))
        found = calibrate(model, settings.calibrate)
        log.info("calibration: %s", found)
        self._save_model(replace(self.spec, extra={**self.spec.extra, **as_metadata(found)}))

    def _save_model(self, spec: ModelSpec) -> None:
        save_model(self.model_path, self.state.average.state, spec, beams=self.beams)

    def _start_logs(self) -> None:
        if not self.accelerator.is_main_process:
            return
        path = self.settings.out / "log.jsonl"
        if path.exists():  # forget what a killed run had logged past its checkpoint
            lines = [] if self.state.step == 0 else path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= self.state.step]
            path.write_text("".join(line + "\n" for line in kept))
        resolved = {"version": __version__, **self.settings.model_dump(mode="json")}
        (self.settings.out / "settings.json").write_text(json.dumps(resolved, indent=2))
        if self.settings.tracker != "jsonl":
            self.accelerator.init_trackers("txmcorrect")

    def _record(self, values: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        with (self.settings.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.state.step, **values}) + "\n")
        self.accelerator.log(values, step=self.state.step)

    def _finish(self, validation: Validation | None) -> Result:
        if not self.accelerator.is_main_process:
            return Result()
        self._calibrate()
        message = f"step {self.state.step} of {self.settings.steps}: {self.model_path}"
        if validation:
            message += (
                f"; validation: off by {validation.error:.2f} % "
                f"(without network: {validation.base_error:.2f} %)"
            )
        return Result((self.model_path,), message)


def _step_of(line: str) -> float:
    """The step of a line of the log; a line that a kill tore belongs to none."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")


def spec_of(settings: TrainSettings) -> ModelSpec:
    """What kind of model these settings train."""
    data, diffusion = settings.dataset, settings.diffusion
    extra: dict[str, Any] = {}
    if data.condition in PRIORS:
        extra = {"pad": data.pad, "scale": scale_of(data.condition), "position": data.position}
    if data.condition == "denoise":
        extra["noise"] = list(data.noise)
    return ModelSpec(
        network=settings.network.model_dump(mode="json"),
        condition=data.condition,
        cond_channels=(CHANNELS | PRIORS)[data.condition],
        size=data.size,
        domain=DOMAINS.get(data.condition, ModelSpec.domain),
        target=diffusion.target,
        schedule=diffusion.schedule,
        timesteps=diffusion.timesteps,
        extra={"uncon_ratio": diffusion.uncon_ratio, "seed": settings.seed, **extra},
    )


def _comparable(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide the result."""
    return settings.model_dump(mode="json", exclude=FREE)


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version, with what it did not know yet at its default."""
    try:
        return _comparable(TrainSettings.model_validate(saved))
    except ValidationError:
        return saved
