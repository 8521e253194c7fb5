"""Scan -> background: what correct, mosaic, tomo and evaluate share.

    survey (one pass) -> detail -> key frames (network) -> levels, amplitudes, flags -> Background

and `correct_scan` streams the division into a result file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean, spread_out, working_bin
from txmcorrect.background.detail import choose_frames, detail_of
from txmcorrect.background.estimate import (
    Conditions,
    Draw,
    generate,
    pair_conditions,
    stack_conditions,
)
from txmcorrect.background.keyframes import (
    changes,
    find_jumps,
    first_plan,
    interpolate,
    refinement,
    settle,
)
from txmcorrect.background.quality import (
    DARK_SHARE,
    LEAK_LIMIT,
    NAMES,
    UNCERTAIN_LIMIT,
    Flag,
    Verdict,
    judge_run,
    leak_slope,
    odd_ones,
    spread_rms,
)
from txmcorrect.background.scale import (
    LEAST,
    Reference,
    amplitudes,
    anchor,
    mean_reference,
    steady_levels,
)
from txmcorrect.background.survey import Survey, mean_frame, read_counts, survey_scan
from txmcorrect.background.windows import known_scan
from txmcorrect.config import CorrectSettings
from txmcorrect.formats import open_references, open_scan
from txmcorrect.formats.corrected import key_weights
from txmcorrect.formats.write import Process, ResultWriter
from txmcorrect.matching import check_raw, match_references
from txmcorrect.scan import Scan
from txmcorrect.stream import iter_blocks, run_signature
from txmcorrect.weights import Model, load_model

log = logging.getLogger(__name__)
Report = Callable[[str, int, int], None]
LIT_FRACTION = 0.08
BYTES_PER_PIXEL = 40.0
LEAK_FRAMES = 2  # with fewer key frames a common background cannot be told from the sample


def silent(stage: str, done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Background:
    """The background of a whole scan, at any frame.

    Attributes
    ----------
    keys : `(k,)` frame numbers; jumps : first frames after jumps.
    fields, std : `(k, h', w')` log counts on the working grid and their spread.
    detail : `(h, w)` fixed log pattern; factor : bin of the working grid.
    amplitude, flag : `(n,)`; lit : `(h, w)`; dark : `(h, w)`.
    conditions : what the model sees of a frame, to draw more samples with.
    """

    keys: NDArray[np.intp]
    jumps: NDArray[np.intp]
    fields: NDArray[np.float32]
    std: NDArray[np.float32]
    detail: NDArray[np.float32]
    factor: int
    amplitude: NDArray[np.float64]
    flag: NDArray[np.uint32]
    lit: NDArray[np.bool_]
    dark: NDArray[np.float32]
    scale: str
    notes: tuple[str, ...] = ()
    leak: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    conditions: Conditions | None = field(default=None, repr=False)

    def key_image(self, key: int) -> NDArray[np.float32]:
        """Log background `(h, w)` of key frame number `key`, at native resolution."""
        return self.native(self.fields[key]) + self.detail

    def key_std(self, key: int) -> NDArray[np.float32]:
        """Spread `(h, w)` of the log background of key frame number `key`."""
        return self.native(self.std[key])

    def log_background(self, frame: int) -> NDArray[np.float32]:
        """Log background `(h, w)` of a frame, amplitude included."""
        return self.interpolated(frame) + np.float32(np.log(self.amplitude[frame]))

    def interpolated(self, frame: int) -> NDArray[np.float32]:
        """Log background `(h, w)` of a frame without its amplitude: linear between key images."""
        left, right, t = key_weights(self.keys, self.jumps, frame)
        if left == right:
            return self.key_image(left)
        mixed = (1 - t) * self.fields[left] + t * self.fields[right]
        return self.native(mixed.astype(np.float32)) + self.detail

    def verdict(self) -> Verdict:
        return judge_run(self.flag, self.scale, self.notes)

    def native(self, small: NDArray[np.float32]) -> NDArray[np.float32]:
        """A field `(h', w')` of the working grid at native resolution `(h, w)`."""
        shape = self.detail.shape
        return spread_out(torch.from_numpy(small)[None], self.factor, (shape[0], shape[1]))[
            0
        ].numpy()


@dataclass(frozen=True)
class KeyImages:
    """Key images of a background, made when asked for."""

    background: Background
    spread: bool = False

    def __len__(self) -> int:
        return len(self.background.keys)

    def __getitem__(self, index: int, /) -> NDArray[np.float32]:
        background = self.background
        return background.key_std(index) if self.spread else background.key_image(index)


def estimate_background(
    scan: Scan,
    model: Model,
    draw: Draw,
    *,
    references: tuple[Reference, ...] = (),
    dark: NDArray[np.float32] | None = None,
    interval: int = 1,
    every: int | None = None,
    settle_keys: int = 5,
    scale_roi: tuple[int, int, int, int] | None = None,
    memory: int = 2 * 1024**3,
    report: Report = silent,
) -> Background:
    """Generate the background of every frame of a raw scan.

    Parameters
    ----------
    scan : raw. model : of the pair or stack condition. draw : how samples are drawn.
    references : matching ones; they give the fixed pattern and the absolute scale, and a stack
    model sees them.
    dark : `(h, w)` where the scan has none. interval : distance of the frames of a pair.
    every : key frames this far apart; None: as the drift asks. settle_keys : see
    `keyframes.settle`. memory : bytes.

    Raises
    ------
    FlatFieldError : fewer than two usable frames.
    """
    h, w = scan.shape[1:]
    survey = survey_scan(
        scan, dark, model.spec.size, memory, lambda done, all_: report("looking", done, all_)
    )
    detail, references, notes = _detail(scan, survey, references, memory)
    if not survey.dark_known:
        log.warning("no dark frames: zero counts are taken for no light")
    exposure = _log_exposure(scan)
    conditions = _conditions(model, survey, references, exposure, interval)
    keys, fields, std = _key_fields(survey, model, conditions, draw, every, report)
    small_lit = lit_cells(fields)
    change = changes(fields, small_lit)
    jumps = find_jumps(keys, change)
    fields = settle(fields, small_lit, keys, jumps, settle_keys)
    scale = "relative"
    absolute = [r for r in references if r.absolute]
    levelled = model.spec.condition == "stack" and absolute  # it saw the references' own level
    if not levelled:
        fields = steady_levels(fields, small_lit, None if exposure is None else exposure[keys])
    if scale_roi is not None:
        scale = "scale-roi"
    elif absolute:
        if not levelled:
            fields = anchor(
                fields, small_lit, absolute[0].log_exposure[keys], absolute[0], survey.factor
            )
        scale = f"reference ({absolute[0].origin}, exposure and current recorded)"
    amplitude = amplitudes(survey, fields, keys, jumps, small_lit, exposure)
    flag, leak = _flags(survey, keys, fields, std, small_lit, jumps)
    lit_map = spread_out(
        torch.from_numpy(small_lit.astype(np.float32))[None], survey.factor, (h, w)
    )
    return Background(
        keys=keys,
        jumps=jumps,
        fields=fields,
        std=std,
        detail=detail,
        factor=survey.factor,
        amplitude=amplitude,
        flag=flag,
        lit=(lit_map[0].numpy() > 0.5) & ~survey.broken,
        dark=survey.dark,
        scale=scale,
        notes=notes,
        leak=leak,
        conditions=conditions,
    )


def _detail(
    scan: Scan, survey: Survey, references: tuple[Reference, ...], memory: int
) -> tuple[NDArray[np.float32], tuple[Reference, ...], tuple[str, ...]]:
    """The fixed pattern: from references that show the scan's own, else from all frames.

    Returns
    -------
    detail : `(h, w)`. references : those that show the scan's pattern. notes : what was left out.
    """
    index = choose_frames(survey.usable)
    own = detail_of(scan.projections, index, survey.dark, survey.factor, False, memory)
    total, count = np.zeros_like(own), 0
    notes: list[str] = []
    fit: list[Reference] = []
    for reference in references:
        theirs = _reference_detail(reference, survey.factor)
        # Least squares of the scan's pattern on the reference's; 1 where it is the same detector.
        likeness = float((own * theirs).mean() / max(float((own**2).mean()), 1e-12))
        if survey.factor == 1 or likeness > 0.5 or float(own.std()) < 1e-4:
            frames = 1 if reference.flats is None else len(reference.flats)
            total, count = total + np.float32(frames) * theirs, count + frames
            fit.append(reference)
        else:
            notes.append(f"{reference.origin} shows another fixed pattern and was not used")
    return (total / np.float32(count) if count else own), tuple(fit), tuple(notes)


def _reference_detail(reference: Reference, factor: int) -> NDArray[np.float32]:
    counts = torch.from_numpy(np.maximum(reference.counts, LEAST))[None]
    shape = (counts.shape[1], counts.shape[2])
    # Logarithms are interpolated, here as where detail is put back: exact for this reference.
    coarse = spread_out(bin_mean(counts, factor).log(), factor, shape)
    return (counts.log() - coarse).clamp(-1.4, 1.4)[0].numpy()


def _conditions(
    model: Model,
    survey: Survey,
    references: tuple[Reference, ...],
    exposure: NDArray[np.float64] | None,
    interval: int,
) -> Conditions:
    """What the model sees of a frame."""
    photons = survey.photons * survey.factor**2
    if model.spec.condition == "stack":
        return stack_conditions(known_scan(survey, references, exposure))
    return pair_conditions(survey.small, survey.usable, interval, photons)


def _key_fields(
    survey: Survey,
    model: Model,
    conditions: Conditions,
    draw: Draw,
    every: int | None,
    report: Report,
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """Generate key frames; where the plan is ours, add more where the beam changed quickly."""
    usable = survey.usable

    def make(keys: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return generate(model, conditions, keys, draw, lambda d, t: report("generating", d, t))

    keys = first_plan(usable, every)
    fields, std = make(keys)
    while every is None:
        more = refinement(keys, changes(fields, lit_cells(fields)), usable)
        if len(more) == 0:
            break
        new_fields, new_std = make(more)
        order = np.argsort(np.concatenate([keys, more]))
        keys = np.concatenate([keys, more])[order]
        fields, std = (
            np.concatenate([fields, new_fields])[order],
            np.concatenate([std, new_std])[order],
        )
    return keys, fields, std


def lit_cells(fields: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Cells `(h', w')` of the working grid where the median key background has light."""
    middle = np.median(fields, axis=0)
    return middle > np.log(LIT_FRACTION) + np.median(middle)


def _log_exposure(scan: Scan) -> NDArray[np.float64] | None:
    """Log of recorded exposure x current per frame, relative to the median; None if not recorded."""
    if scan.current_ma is None or not (scan.current_ma > 0).all():
        return None
    product = scan.current_ma.astype(np.float64)
    if scan.exposure_s is not None and (scan.exposure_s > 0).all():
        product = product * scan.exposure_s
    return np.log(product / np.median(product))


def _flags(
    survey: Survey,
    keys: NDArray[np.intp],
    fields: NDArray[np.float32],
    std: NDArray[np.float32],
    lit: NDArray[np.bool_],
    jumps: NDArray[np.intp],
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Bits per frame; frames between key frames inherit what their nearest key frame shows."""
    n = len(survey.small)
    usual = np.median(fields, axis=0)
    log_small = np.log(np.maximum(survey.small, LEAST))
    distance = np.array([(f - usual)[lit].std() for f in fields])
    odd = odd_ones(distance)
    leak = np.zeros(len(keys))
    if len(keys) > LEAK_FRAMES:
        for k, key in enumerate(keys):
            leak[k] = leak_slope(fields[k], usual, log_small[key] - usual, lit)
    bits = np.zeros(len(keys), np.uint32)
    bits[np.abs(leak) > LEAK_LIMIT] |= np.uint32(Flag.LEAK)
    bits[odd] |= np.uint32(Flag.ODD_BACKGROUND)
    bits[[spread_rms(s, lit) > UNCERTAIN_LIMIT for s in std]] |= np.uint32(Flag.UNCERTAIN)
    nearest = np.abs(np.arange(n)[:, None] - keys[None]).argmin(1)
    flag = survey.flag | bits[nearest]
    for i in np.flatnonzero(survey.usable):
        shadow = log_small[i] - interpolate(fields, keys, jumps, int(i)) < np.log(LIT_FRACTION)
        if shadow[lit].mean() > DARK_SHARE:
            flag[i] |= np.uint32(Flag.PARTLY_DARK)
    flag[jumps] |= np.uint32(Flag.JUMP)
    return flag, leak


# --- one scan from file to file ------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A corrected scan on disk: where, and what to say about it."""

    path: Path
    verdict: Verdict
    background: Background
    scan: Scan


def open_for(settings: CorrectSettings, path: Path) -> Scan:
    """Open a scan as the settings ask: layout, reader, frames, region, binning."""
    scan = open_scan(
        path,
        data_path=settings.data_path,
        flat_path=settings.flat_path,
        dark_path=settings.dark_path,
        angle_path=settings.angle_path,
        reader=settings.reader,
    )
    frames: slice | list[int] | None = slice(*settings.frames) if settings.frames else None
    if settings.preview is not None:
        count = scan.shape[0]
        chosen = range(count)[frames] if isinstance(frames, slice) else range(count)
        places = np.linspace(0, len(chosen) - 1, min(settings.preview, len(chosen)))
        frames = [chosen[int(p)] for p in places.round()]
    if frames is None and settings.roi is None and settings.bin == 1:
        return scan
    return scan.select(frames, settings.roi, settings.bin)


def references_for(
    settings: CorrectSettings, scan: Scan, dark: NDArray[np.float32], factor: int
) -> tuple[Reference, ...]:
    """Matching references: those of `--refs` first, then those inside the scan."""
    groups = list(scan.flats)
    if settings.refs is not None:
        given = open_references(settings.refs)
        if settings.roi is not None or settings.bin > 1:
            given = tuple(
                replace(scan, projections=g.frames, flats=(g,))
                .select(None, settings.roi, settings.bin)
                .flats[0]
                for g in given
            )
        groups = [*given, *groups]
    if not groups:
        check_raw(scan, settings.force)
        return ()
    matches = match_references(scan, groups, settings.force)
    for match in matches:
        for warning in match.warnings:
            log.info("%s: %s", match.references.origin, warning)
    return tuple(mean_reference(match, dark, factor) for match in matches)


def correct_scan(
    settings: CorrectSettings, path: Path, out: Path, report: Report = silent
) -> Outcome:
    """Correct one scan into `out`; resumes what a killed run of the same settings left.

    Raises
    ------
    TxmError : see `errors`; nothing half-written is left under the name `out`.
    """
    scan = open_for(settings, path)
    device = choose_device(settings.device)
    model = load_model(settings.model, settings.condition, device)
    inputs = [p for p in (path, settings.refs, settings.dark) if p is not None]
    options = settings.model_dump(mode="json", exclude={"scans", "out", "out_dir"})
    signature = run_signature(options, inputs, model.sha256)
    with ResultWriter(
        out,
        scan.shape,
        signature,
        theta=scan.theta,
        source=path if path.is_file() else None,
        layout=settings.format,
        overwrite=settings.overwrite,
    ) as writer:
        background = _background(settings, scan, model, report)
        amplitude = _divide(scan, background, writer, settings, report)
        verdict = background.verdict()
        background = replace(background, amplitude=amplitude)
        process = Process(
            key_index=background.keys,
            jump_index=background.jumps,
            log_background=KeyImages(background),
            log_std=KeyImages(background, spread=True),
            amplitude=amplitude,
            flag=background.flag,
            flag_names=NAMES,
            lit=background.lit,
            dark=background.dark,
            scale=background.scale,
            verdict=str(verdict),
            options=options,
            model_sha256=model.sha256,
            seed=settings.seed,
        )
        writer.finish(process, lambda done, total: report("assembling", done, total))
    return Outcome(out, verdict, background, scan)


def choose_device(wanted: str) -> str:
    """`auto` is CUDA where there is one."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _background(settings: CorrectSettings, scan: Scan, model: Model, report: Report) -> Background:
    dark = None
    if settings.dark is not None:
        dark = mean_frame(open_references(settings.dark)[0].frames)
    elif scan.darks is not None and scan.darks.shape[0]:
        dark = mean_frame(scan.darks)
    zero = np.zeros(scan.shape[1:], np.float32)
    factor = working_bin((scan.shape[1], scan.shape[2]), model.spec.size)
    return estimate_background(
        scan,
        model,
        Draw(settings.sampler, settings.steps, settings.samples, settings.seed),
        references=references_for(settings, scan, zero if dark is None else dark, factor),
        dark=dark,
        interval=settings.interval,
        every=None if settings.every == "auto" else int(settings.every),
        settle_keys=settings.settle,
        scale_roi=settings.scale_roi,
        memory=settings.memory,
        report=report,
    )


def _divide(
    scan: Scan,
    background: Background,
    writer: ResultWriter,
    settings: CorrectSettings,
    report: Report,
) -> NDArray[np.float64]:
    """Stream frame / background into the writer; returns the final amplitudes `(n,)`."""
    n, h, w = scan.shape
    blocks = list(iter_blocks(n, h, w, settings.memory // 2, BYTES_PER_PIXEL, multiple=16))
    for start, stop in writer.pending(blocks):
        counts = read_counts(scan.projections, start, stop, background.dark)
        amplitude = background.amplitude[start:stop].copy()
        divide_block(counts, background, start, amplitude, settings.scale_roi)
        writer.write(start, counts, amplitude=amplitude)
        report("dividing", stop, n)
    return writer.values("amplitude")


def divide_block(
    counts: NDArray[np.float32],
    background: Background,
    start: int,
    amplitude: NDArray[np.float64],
    scale_roi: tuple[int, int, int, int] | None = None,
) -> None:
    """Turn counts above dark `(m, h, w)` into transmission, in place; unlit and dead pixels become 1.

    With `scale_roi`, `(y0, y1, x0, x1)` known to be empty, `amplitude` is set so that it averages 1.
    """
    for i, frame in enumerate(counts):
        frame /= np.exp(background.interpolated(start + i))
        if scale_roi is not None:
            y0, y1, x0, x1 = scale_roi
            inside = frame[y0:y1, x0:x1][background.lit[y0:y1, x0:x1]]
            amplitude[i] = float(np.nanmean(inside)) if inside.size else 1.0
            if not (np.isfinite(amplitude[i]) and amplitude[i] > 0):
                amplitude[i] = 1.0
        frame /= np.float32(amplitude[i])
        frame[~background.lit | ~np.isfinite(frame)] = 1.0
