"""Typed settings, one frozen model per subcommand. The command line is derived from them.

Precedence: defaults here, then `--config FILE.yaml`, then flags. A field marked `argument()` is
positional; nested models (network, diffusion, data) are reached through the YAML file only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from txmcorrect.errors import TxmError

S = TypeVar("S", bound="Settings")


def argument(help: str, **bounds: Any) -> Any:
    """Field that the command line takes by position."""
    return Field(description=help, json_schema_extra={"argument": True}, **bounds)


def option(default: Any, help: str, flags: str = "", **bounds: Any) -> Any:
    """Field that the command line takes as `--its-name` (or as `flags`, space-separated)."""
    return Field(default=default, description=help, json_schema_extra={"flags": flags}, **bounds)


def parse_bytes(value: Any) -> Any:
    """`2GiB`, `500 MB`, `1e9` -> bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.eE+]+?)\s*([kKmMgGtT]?)(i?)[bB]?\s*", value)
    if not match:
        raise ValueError(f"expected a size such as 2GiB, got {value!r}")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** " kmgt".index(prefix.lower() or " "))


def parse_slice(value: Any) -> Any:
    """`a:b:n` -> (a, b, n), each an int or None, as Python slices read it."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"-?\d*:-?\d*(:\d*)?", value):
        raise ValueError(f"expected frames as a:b or a:b:n, got {value!r}")
    parts = [int(p) if p else None for p in value.split(":")]
    return (*parts, *[None] * (3 - len(parts)))


def parse_roi(value: Any) -> Any:
    """`y0:y1,x0:x1` -> (y0, y1, x0, x1) in pixels."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", value.replace(" ", ""))
    if not match:
        raise ValueError(f"expected a region as y0:y1,x0:x1 in pixels, got {value!r}")
    y0, y1, x0, x1 = map(int, match.groups())
    if y0 >= y1 or x0 >= x1:
        raise ValueError(f"the region {value!r} is empty")
    return y0, y1, x0, x1


def parse_grid(value: Any) -> Any:
    """`4x5` -> (4, 5): rows, columns."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)[xX](\d+)", value)
    if not match or "0" in match.groups():
        raise ValueError(f"expected a grid as ROWSxCOLUMNS, got {value!r}")
    return int(match[1]), int(match[2])


def auto_or(wanted: str) -> WrapValidator:
    """Say in one line what besides `auto` is understood, not one line for each possibility."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected auto or {wanted}") from None

    return WrapValidator(validate)


def _slice_text(value: tuple[int | None, ...]) -> str:
    return ":".join("" if part is None else str(part) for part in value)


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
FrameSlice = Annotated[
    tuple[int | None, int | None, int | None],
    BeforeValidator(parse_slice),
    PlainSerializer(_slice_text),
]
Roi = Annotated[
    tuple[int, int, int, int],
    BeforeValidator(parse_roi),
    PlainSerializer(lambda r: f"{r[0]}:{r[1]},{r[2]}:{r[3]}"),
]
Grid = Annotated[
    tuple[int, int], BeforeValidator(parse_grid), PlainSerializer(lambda g: f"{g[0]}x{g[1]}")
]
AutoFloat = Annotated[Literal["auto"] | float, auto_or("a number")]
AutoInt = Annotated[Literal["auto"] | PositiveInt, auto_or("a whole number from 1")]


class Part(BaseModel):
    """A nested group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Part):
    """Options common to all commands."""

    summary: ClassVar[str] = ""
    example: ClassVar[str] = ""

    config: Path | None = option(None, "Settings from a YAML file; flags win over it.")
    seed: int = option(0, "Seed of every random number of this run.", ge=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where the network runs.")
    overwrite: bool = option(False, "Replace an existing output.")
    dry_run: bool = option(False, "Print the resolved settings and stop.")
    log_file: Path | None = option(None, "Append the log to this file as well.")
    verbose: int = option(0, "Say more (-vv for debugging).", "-v", ge=0)
    quiet: bool = option(False, "Print errors and the verdict only.", "--quiet -q")


class ReadSettings(Settings):
    """Where a scan's data lie, for HDF5 files of any layout."""

    data_path: str | None = option(None, "HDF5 dataset with the projections.")
    flat_path: str | None = option(None, "HDF5 dataset with the references.")
    dark_path: str | None = option(None, "HDF5 dataset with the darks.")
    angle_path: str | None = option(None, "HDF5 dataset with the angles.")
    reader: Literal["own", "dxchange"] = option("own", "Who reads: our reader, or dxchange.")

    def sources(self) -> dict[str, Any]:
        """Arguments of `open_scan` and `open_references`."""
        names = ("data_path", "flat_path", "dark_path", "angle_path", "reader")
        return {name: getattr(self, name) for name in names}


class InfoSettings(ReadSettings):
    """`info`."""

    summary: ClassVar[str] = "Say what is in a scan: format, shape, angles, dates, references."
    example: ClassVar[str] = "txmcorrect info scan.txrm"

    files: list[Path] = argument("Scans: HDF5, xrm/txrm, TIFF, npy, or folders.", min_length=1)
    json_output: bool = option(False, "Print JSON instead of a table.", "--json")


class SimulateSettings(Settings):
    """`simulate`."""

    summary: ClassVar[str] = "Write a synthetic scan, its bank of references and its exact truth."
    example: ClassVar[str] = "txmcorrect simulate scan.h5 --kind mosaic-sparse --drift medium"

    out: Path = argument("Scan to write, OUT.h5; OUT.refs.h5 and OUT.truth.h5 lie beside it.")
    kind: Literal["mosaic-sparse", "mosaic-dense", "tomo", "film"] = option(
        "mosaic-sparse", "What is imaged, and how."
    )
    drift: Literal["slow", "medium", "fast"] = option("medium", "1.5, 5 or 15 % over the scan.")
    counts: float = option(5000.0, "Mean counts of an empty lit pixel.", gt=0)
    size: int = option(256, "Frame width and height in pixels.", ge=32)
    height: int | None = option(None, "Frame height, where it differs from --size.", ge=2)
    frames: int | None = option(
        None, "Frames; those of a mosaic make its grid, as square as it comes.", ge=2
    )
    grid: Grid = option((4, 4), "Rows x columns of a mosaic.")
    overlap: float = option(
        0.1, "Overlap of neighbouring tiles, fraction of the frame.", ge=0, lt=1
    )
    references: Literal[
        "none", "stale", "before-after", "fresh", "burst", "before", "within", "bank"
    ] = option("none", "References inside the scan file (the bank is written anyway).")
    bank: int = option(20, "References in the bank.", ge=0)
    family: Literal["train", "develop", "benchmark"] = option(
        "train", "Generators of beams, drifts and samples; families share none."
    )
    drift_kind: Literal[
        "trend", "white", "walk", "mixed", "jump", "stripes", "zoom", "decay", "still"
    ] = option("trend", "How the beam drifts; --drift says how much, as is usual for the kind.")
    order: Literal["time", "shuffled"] = option("time", "How frames lie in the file.")
    records: Literal["full", "none", "partial", "wrong", "quantised"] = option(
        "full",
        "What is recorded: all; nothing; exposures only; a constant current; currents in 4 % steps.",
    )
    flat_exposure: float = option(1.0, "Exposure of references over that of frames.", gt=0)
    sample: Literal["sparse", "dense", "film", "opaque", "tomo", "wide", "empty"] | None = option(
        None, "What is imaged, where --kind does not offer it."
    )
    strength: float | None = option(None, "Absorption at the sample's strongest place.", gt=0, lt=1)
    detector: Literal["pattern", "none"] = option(
        "pattern", "Fixed pattern of the detector, or photon noise only."
    )
    texture: Literal["mottle", "speckle", "none"] = option(
        "mottle", "What moves with the illumination; speckle: as fine as 2-16 pixels."
    )


class PrepareSettings(ReadSettings):
    """`prepare`."""

    summary: ClassVar[str] = "Harvest raw frames and references into a training set."
    example: ClassVar[str] = "txmcorrect prepare raw/ refs/ --out data.h5"

    raw: Path = argument("Folder or file with raw frames of samples.")
    refs: Path = argument("Folder or file with references.")
    out: Path = option(Path("data.h5"), "Training set to write.")
    pattern: str | None = option(None, "Names of references inside RAW, e.g. '*ref*'.")
    max_age_hours: float = option(24.0, "Where dates exist: oldest reference to divide by.", gt=0)
    validation: float = option(0.1, "Share of scans kept for validation.", ge=0, lt=1)
    size: int = option(256, "Long side of the stored frames (binned, never cropped).", ge=32)
    force: bool = option(False, "Pair references that do not match or cannot be checked.")


class NetworkSettings(Part):
    """U-Net shape."""

    channels: int = Field(48, ge=4, description="Width of the first level.")
    multipliers: tuple[int, ...] = Field((1, 2, 3), description="Width of each level.")
    blocks: int = Field(1, ge=1, description="Residual blocks a level.")
    attention: tuple[int, ...] = Field((2,), description="Levels with self-attention (0 = first).")
    dropout: float = Field(0.0, ge=0, lt=1)
    patch: int = Field(4, ge=1, description="Pixels folded into channels (space to depth).")


class DiffusionSettings(Part):
    """Noise schedule, target and loss."""

    schedule: str = Field("linear", description="A name of diffusion.schedules.SCHEDULES.")
    timesteps: int = Field(1000, ge=2)
    target: Literal["eps", "x0", "v", "mean"] = Field(
        "v", description="What the network predicts; mean: a regression without any noise."
    )
    loss: Literal["l1", "l2", "huber"] = "l2"
    snr_weight: Literal["none", "min-snr", "sigmoid"] = "none"
    levels: Literal["even", "lognormal"] = Field(
        "even", description="Noise levels drawn: even over the schedule, or as EDM does."
    )
    top_share: float = Field(
        0.0, ge=0, le=1, description="Share of items at the largest level: the posterior mean."
    )
    uncon_ratio: float = Field(0.25, ge=0, le=1, description="Share of items without condition.")


class DataSettings(Part):
    """What a training batch is made of."""

    condition: Literal["pair", "stack", "sample", "slice", "sinogram", "denoise"] = Field(
        "pair",
        description="pair and stack generate backgrounds; sample (frames), slice (both planes of a "
        "volume) and sinogram are priors; denoise sees a noisy frame.",
    )
    size: int = Field(64, ge=16, description="Long side of a training frame in pixels.")
    real: float = Field(0.5, ge=0, le=1, description="Share of batches from --data, where given.")
    augment: bool = Field(True, description="The source's flips, turns and resized crops.")
    brightness: float = Field(0.1, ge=0, description="Spread of the log brightness variation.")
    contrast: float = Field(0.1, ge=0, description="Spread of the contrast variation.")
    counts: tuple[float, float] = Field(
        (50.0, 20000.0), description="Range of counts (log-uniform)."
    )
    workers: int = Field(1, ge=0, description="Processes that simulate batches.")
    patches: tuple[int, ...] = Field((16, 32, 64), description="Sides of patches (sample).")
    shares: tuple[float, ...] = Field((0.2, 0.3, 0.5), description="How often each side is drawn.")
    pad: int = Field(16, ge=0, description="Empty border around images, in pixels (sample).")
    position: bool = Field(True, description="Whether a prior is told where patches lie.")
    images: int | None = Field(None, ge=1, description="Train a prior on this few images only.")
    sides: tuple[int, int] | None = Field(None, description="Range of a prior's images, in pixels.")
    noise: tuple[float, float] = Field(
        (0.02, 0.3), description="Deviation of the noise that denoise sees (log-uniform)."
    )


class TrainSettings(Settings):
    """`train`."""

    summary: ClassVar[str] = "Train a background model; the same command resumes."
    example: ClassVar[str] = "accelerate launch txmcorrect train --out runs/pair --max-steps 1000"

    data: Path | None = option(None, "Training set of `prepare`; without it, the simulator.")
    out: Path = option(Path("runs/pair"), "Folder for checkpoints, log and model.")
    init: str | None = option(None, "Start from `bundled` or a model file (fine-tuning).")
    steps: int = option(6000, "Length of the learning-rate decay.", ge=1)
    max_steps: int | None = option(None, "Stop (resumably) at this step.", ge=1)
    max_minutes: float | None = option(None, "Stop (resumably) after this long.", gt=0)
    batch: int = option(16, "Global batch: items per optimiser step over all processes.", ge=1)
    accumulate: int = option(1, "Micro-batches an optimiser step is split into.", ge=1)
    lr: float = option(8e-4, "Peak learning rate.", gt=0)
    warmup: int = option(200, "Steps of linear warm-up.", ge=0)
    weight_decay: float = option(1e-4, "AdamW weight decay.", ge=0)
    clip: float = option(1.0, "Gradient norm limit.", gt=0)
    ema: float = option(0.999, "Decay of the averaged weights.", ge=0, lt=1)
    precision: Literal["no", "fp16", "bf16"] = option("no", "Mixed precision.")
    compile: bool = option(False, "Use torch.compile.")
    channels_last: bool = option(False, "Use the channels-last memory layout.")
    checkpoint_every: int = option(1000, "Steps between checkpoints.", ge=1)
    validate_every: int = option(1000, "Steps between validations.", ge=1)
    calibrate: int = option(
        5, "Scans of each kind that a stack model's doubt and spread are measured on.", ge=0
    )
    tracker: str = option("jsonl", "jsonl, tensorboard, or any name Accelerate knows.")
    network: NetworkSettings = NetworkSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    dataset: DataSettings = DataSettings()


class CorrectSettings(ReadSettings):
    """`correct`: what `mosaic` and `tomo` share."""

    summary: ClassVar[str] = "Remove the background of every frame of one or more scans."
    example: ClassVar[str] = "txmcorrect correct scan.h5 --out corrected.h5 --refs refs/"

    scans: list[Path] = argument("Scans: HDF5, xrm/txrm, TIFF, npy, or folders.", min_length=1)
    out: Path | None = option(None, "Result; default <stem>.corrected.h5 beside the scan.")
    out_dir: Path | None = option(None, "Folder for the results of several scans.")
    format: Literal["h5", "nxtomo", "tiff"] = option("h5", "Layout of the result.")
    refs: Path | None = option(None, "References: a folder or an HDF5 file.")
    dark: Path | None = option(None, "Dark frames, where the scan has none.")
    flats: Literal["auto", "generated", "measured"] = option(
        "auto",
        "What divides out the beam: flats as they were measured, interpolated between those before and after; "
        "our model; auto: the model, and for a single frame its flats.",
    )
    condition: Literal["auto", "stack", "pair"] = option(
        "auto",
        "What the model sees; auto: a stack, or what a given model was trained to see.",
    )
    interval: int = option(1, "Distance of the two frames of a pair.", ge=1)
    partners: int = option(
        4, "Frames that each frame is paired with; the median of the answers counts.", ge=1
    )
    model: str = option(
        "bundled", "Model file, `bundled`, or `none` for the fit without a network."
    )
    sampler: Literal["ddpm", "ddim", "dpmpp"] = option("ddim", "How samples are drawn.")
    steps: int = option(4, "Network evaluations a sample.", ge=1)
    samples: int = option(
        4, "Samples a key frame: 1 is used as it is, more give a spread about the mean.", ge=1
    )
    every: AutoInt = option("auto", "Key frames: auto, or every N frames.")
    settle: int = option(
        15, "Key frames that a robust line in time is laid through; 1: none.", ge=1
    )
    memory: Bytes = option(2 * 1024**3, "Memory budget, e.g. 2GiB.")
    roi: Roi | None = option(None, "Region to correct, y0:y1,x0:x1.")
    bin: int = option(1, "Bin pixels before anything else.", ge=1)
    frames: FrameSlice | None = option(None, "Frames to correct, a:b:n.")
    scale_roi: Roi | None = option(None, "Region known to be empty; fixes the absolute scale.")
    preview: int | None = option(None, "Correct only this many frames, spread over the scan.", ge=2)
    watch: bool = option(False, "Correct frames as they arrive in a folder or an HDF5 file.")
    idle: float = option(
        60.0, "With --watch: seconds without a new frame after which the scan is over.", gt=0
    )
    strict: bool = option(False, "Exit 3 unless the verdict is TRUSTED.")
    force: bool = option(
        False, "Correct again what is corrected; use references that do not match."
    )

    @field_validator("model")
    @classmethod
    def _none_sees_no_pairs(cls, model: str, info: ValidationInfo) -> str:
        """The fit looks at the whole stack: pairs are for a network."""
        if model == "none" and info.data.get("condition") == "pair":
            raise ValueError(
                "expected a model for --condition pair; the fit alone is of --condition stack"
            )
        return model


class MosaicSettings(CorrectSettings):
    """`mosaic`."""

    summary: ClassVar[str] = "Correct, register and blend tiles into one image."
    example: ClassVar[str] = "txmcorrect mosaic tiles/ --grid 4x4 --out mosaic.tif"

    layout: Path | None = option(None, "TileConfiguration.txt with nominal positions.")
    grid: Grid | None = option(None, "Rows x columns.")
    overlap: AutoFloat = option("auto", "Overlap as a fraction of the frame, or auto.")
    order: str = option("rows,bottom-left", "rows or snake, and the corner that comes first.")
    flats: Literal["auto", "generated", "measured", "median"] = option(  # type: ignore[assignment]
        "auto",
        "Background: generated by the model (auto), flats as they were measured, or plainly the median of all "
        "tiles.",
    )
    no_refine: bool = option(False, "Take gains only from the overlaps, no background.")
    blend: Literal["feather", "multiband"] = option(
        "feather", "Fade tiles into each other all alike, or fine detail over a shorter way."
    )
    pixel_size_nm: float | None = option(None, "Size of a pixel, where the file has none.", gt=0)


class TomoSettings(CorrectSettings):
    """`tomo`."""

    summary: ClassVar[str] = "Correct, align and reconstruct projections into a volume."
    example: ClassVar[str] = "txmcorrect tomo scan.h5 --method fbp --out recon.h5"

    method: Literal["fbp", "sirt", "mlem", "tpdm", "none"] = option("fbp", "Reconstruction.")
    center: AutoFloat = option("auto", "Rotation axis in pixels, or auto.")
    merge: bool = option(False, "Merge several scans into one; of equal angles the latest counts.")
    theta: Path | None = option(None, "Angles in degrees, one per line.")
    invert_theta: bool = option(False, "Turn the other way round.")
    flats: Literal["auto", "generated", "measured", "none"] = option(  # type: ignore[assignment]
        "auto",
        "What divides out the beam: flats measured in the scan, our model, nothing any more; "
        "auto measures where it can.",
    )
    split: int | None = option(
        None,
        "With two measured flats: the first frame that takes the second, not both mixed.",
        ge=0,
    )
    filter: Literal["ramp", "shepp-logan", "cosine", "hamming", "hann", "none"] = option(
        "shepp-logan", "Filter of fbp."
    )
    iterations: int = option(100, "Iterations of sirt and mlem.", ge=1)
    prior: str = option("bundled", "Model of slices for tpdm: a file, or `bundled`.")
    levels: int = option(50, "Noise levels of tpdm.", ge=1)
    draws: int = option(
        1, "Volumes tpdm draws; their mean is written, of 2 or more the spread.", ge=1
    )
    turns: float = option(2.0, "Tpdm: every how many steps the upright plane has its turn.", ge=1)
    align: Literal["none", "stored", "common-line", "correlation"] = option(
        "stored", "Shifts applied: the file's, or the file's and estimated ones."
    )
    stripes: int = option(
        0, "Suppress stripes (rings) up to half this many pixels wide; 0: leave them.", ge=0
    )
    contrast: Literal["auto", "absorption", "phase"] = option(
        "auto", "Whether values are attenuations; phase contrast gets no physical unit."
    )


class RestoreSettings(ReadSettings):
    """`restore`."""

    summary: ClassVar[str] = "Denoise, deblur, super-resolve, inpaint or generate frames."
    example: ClassVar[str] = "txmcorrect restore corrected.h5 --task denoise --out restored.h5"

    scan: Path | None = argument("Scan to restore (none for --task generate).", default=None)
    task: Literal["denoise", "deblur", "superres", "inpaint", "fourier", "generate"] = option(
        "denoise", "What to do; fourier takes complex frequencies (npy), 0 where not measured."
    )
    out: Path | None = option(None, "Result; default <stem>.restored.h5.")
    across: str | None = option(
        None, "Prior of the planes across the frames (stack, x): restores the stack as one volume."
    )
    turns: float = option(
        2.0, "As one volume: every how many steps the planes across have their turn.", ge=1
    )
    axis: Literal["frame", "stack"] = option(
        "frame", "Superresolution: within frames, or of thick frames along the stack."
    )
    model: str = option(
        "bundled",
        "Model file: a prior or a denoiser; or one that ships: `sample` (bundled), `slice`.",
    )
    scale: float = option(
        1.0, "Guidance scale of a denoiser that sees the noisy frame; 0 ignores it.", ge=0
    )
    guidance: Literal["auto", "dmps", "ddnm", "dps"] = option(
        "auto", "How samples meet the data; auto is ddnm, and dps for inpaint."
    )
    sampler: Literal["ddpm", "ddim", "dpmpp", "langevin", "pc", "mean"] = option(
        "ddpm", "How samples are drawn; mean (denoise only) is one evaluation without a spread."
    )
    samples: int = option(8, "Samples of the posterior (2 or more give a spread).", ge=1)
    steps: int = option(25, "Noise levels a sample.", ge=1)
    noise: str = option("auto", "auto, poisson, gaussian, or a deviation in transmission.")
    psf: float = option(1.5, "Deviation of the blur to undo, in pixels.", gt=0)
    psf_file: Path | None = option(None, "Measured point spread (TIFF or npy), instead of --psf.")
    factor: int = option(2, "Superresolution: finer pixels per pixel and axis.", ge=2)
    mask: Path | None = option(
        None, "Inpaint: image (TIFF or npy), nonzero where data are missing."
    )
    counts: float | None = option(None, "Counts of an empty pixel, for raw frames.", gt=0)
    assembly: Literal["random", "fixed", "average"] = option("random", "How patches make a frame.")
    border: Literal["mirrored", "empty"] = option(
        "mirrored", "Denoise whole frames: what lies beyond their edge."
    )
    frames: FrameSlice | None = option(None, "Frames to restore, a:b:n.")
    size: int = option(256, "Generate: side of the frames in pixels.", ge=32)
    number: int = option(4, "Generate: how many frames; as one volume, how deep.", ge=1)
    record: bool = option(False, "Write how the first frame came about: sheet and GIF.")
    memory: Bytes = option(2 * 1024**3, "Memory budget, e.g. 2GiB.")


class EvaluateSettings(ReadSettings):
    """`evaluate`."""

    summary: ClassVar[str] = "Score a result against truth, references or other methods."
    example: ClassVar[str] = "txmcorrect evaluate corrected.h5 --truth scan.truth.h5"

    result: Path | None = argument("Corrected scan (none with --refs or --compare).", default=None)
    truth: Path | None = option(None, "Truth written by `simulate`.")
    refs: Path | None = option(None, "References: leave one out, predict it, compare.")
    compare: bool = option(False, "Compare with the peers on benchmark scans.")
    plan: Literal["quick", "core", "grid", "shapes"] = option(
        "quick", "Benchmark scans of --compare; quick takes minutes, core hours."
    )
    seeds: int | None = option(
        None, "Scans of each kind that are run now; default as the plan says.", ge=1
    )
    methods: str = option(
        "", "Methods to run now, or peers, models, networks, checks; by commas; default all."
    )
    jobs: int = option(1, "Processes of --compare, each with scans of its own.", ge=1)
    real: Path | None = option(None, "Compare on the real scans in this folder instead.")
    model: str = option("bundled", "Model file, `bundled`, or `none` for the peers alone.")
    regression: Path | None = option(None, "U-Net regression to compare with: a model file.")
    readme: Path | None = option(
        None, "Text file whose `<!-- table: compare -->` is brought up to date."
    )
    condition: Literal["auto", "stack", "pair"] = option(
        "auto", "What the model sees; auto: both bundled models, or as the given one does."
    )
    interval: int = option(1, "Distance of the two frames of a pair.", ge=1)
    partners: int = option(
        4, "Frames that each frame is paired with; the median of the answers counts.", ge=1
    )
    sampler: Literal["ddpm", "ddim", "dpmpp"] = option("ddim", "How the model's samples are drawn.")
    steps: int = option(4, "Network evaluations a sample.", ge=1)
    samples: int = option(
        4, "Samples a key frame: 1 is used as it is, more give a spread about the mean.", ge=1
    )
    out: Path | None = option(None, "Folder for table, JSON and figures.")
    json_output: bool = option(False, "Print JSON instead of a table.", "--json")


def load_settings(kind: type[S], given: dict[str, Any]) -> S:
    """Merge defaults, the YAML file named by `given['config']`, and what was given by hand.

    Raises
    ------
    TxmError : the file cannot be read, is not a mapping, or names something unknown.
    """
    path = given.get("config")
    values = {**(_read_yaml(Path(path)) if path else {}), **given}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        flag = where if "." in where else "--" + where.replace("_", "-")
        reason = first["msg"].removeprefix("Value error, ")
        origin = f" (in {path})" if path and where.split(".")[0] not in given else ""
        raise UsageError(f"{flag}{origin}: {reason}; got {first['input']!r}") from None


class UsageError(TxmError):
    """An option has a value it cannot have: exit 2, as Typer does for its own."""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TxmError(f"--config {path}: expected a readable YAML file ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise TxmError(
            f"--config {path}: expected `name: value` lines, got {type(values).__name__}"
        )
    return values
