"""Scan -> background: what correct, mosaic, tomo and evaluate share.

    survey (one pass) -> detail -> key frames (network) -> levels, what moves of the detail, amplitudes,
    flags -> Background

Dear intermediate results are numbered pieces of work, which several processes may share and a run
that was killed finds again (`team.Pieces`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean, spread_out
from txmcorrect.background.course import Background
from txmcorrect.background.estimate import (
    BATCH,
    Conditions,
    Draw,
    generate,
    pair_conditions,
    stack_conditions,
)
from txmcorrect.background.fixed import fixed_of
from txmcorrect.background.flags import flag_frames, lit_cells
from txmcorrect.background.keyframes import changes, find_jumps, first_plan, refinement, settle
from txmcorrect.background.known import known_scan
from txmcorrect.background.linear_model.fit import BackgroundFit
from txmcorrect.background.measured import measured_background
from txmcorrect.background.moving import moving_pattern
from txmcorrect.background.overlaps import Shared, read_overlaps
from txmcorrect.background.pattern import Pattern
from txmcorrect.background.quality import Flag
from txmcorrect.background.remembered import with_remembered
from txmcorrect.background.scale import Reference, amplitudes, anchor, level_of, steady_levels
from txmcorrect.background.standing import Standing, without
from txmcorrect.background.static_view import STATIC, is_static
from txmcorrect.background.survey import Survey, scan_dark, survey_scan
from txmcorrect.errors import FlatFieldError
from txmcorrect.scan import Array, Scan
from txmcorrect.team import InMemory, Pieces
from txmcorrect.weights import Model

log = logging.getLogger(__name__)
Report = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Seen:
    """What is known of a scan before the network is asked: references that fit, and notes on others;
    `exposure` `(n,)` natural log, None where not recorded. `standing`: what is known of a sample that turns;
    it is no longer in `survey`.
    """

    survey: Survey
    pattern: Pattern
    references: tuple[Reference, ...]
    notes: tuple[str, ...]
    exposure: NDArray[np.float64] | None
    conditions: Conditions
    standing: Standing | None = None
    remarks: tuple[str, ...] = ()


def estimate_background(
    scan: Scan,
    model: Model,
    draw: Draw,
    *,
    references: tuple[Reference, ...] = (),
    dark: NDArray[np.float32] | None = None,
    interval: int = 1,
    every: int | None = None,
    settle_keys: int = 15,
    scale_roi: tuple[int, int, int, int] | None = None,
    memory: int = 2 * 1024**3,
    report: Report = silent,
    pieces: Pieces | None = None,
    flats: str = "auto",
) -> Background:
    """Generate the background of every frame of a raw scan.

    Parameters
    ----------
    scan : raw. model : of the pair or stack condition. draw : how samples are drawn.
    references : matching ones; they give the fixed pattern and the absolute scale, and a stack
    model sees them.
    dark : `(h, w)` counts; None: of the scan's own. interval : distance of the frames of a pair.
    every : key frames this far apart; None: as the drift asks. settle_keys : see
    `keyframes.settle`; the stack model does not settle mosaics. memory : bytes. pieces : where dear
    results are kept. flats : `measured` divides by the references as they are, `generated` asks the model,
    `auto` does that where more than one frame can be used.

    Raises
    ------
    FlatFieldError : fewer than two usable frames, or one and no reference; nothing measured.
    """
    pieces = pieces or InMemory()
    least = 1 if references and flats != "generated" else 2
    dark = scan_dark(scan) if dark is None else dark
    survey = survey_scan(
        scan, dark, model.spec.size, memory, lambda d, t: report("looking", d, t), pieces, least
    )
    if why := _measured_because(flats, survey):
        return _as_measured(scan, survey, references, why, scale_roi)
    seen = look_at(
        scan,
        model,
        references=references,
        dark=dark,
        interval=interval,
        partners=draw.partners,
        memory=memory,
        report=report,
        pieces=pieces,
        survey=survey,
    )
    survey, pattern, conditions = seen.survey, seen.pattern, seen.conditions
    references, exposure = seen.references, seen.exposure
    fit = conditions.base if isinstance(conditions.base, BackgroundFit) else None
    if fit is not None and every is None:
        every = 1  # beams jitter from frame to frame: each frame has a background of its own
    keys, fields, std = _key_fields(survey, model, conditions, draw, every, report, pieces)
    small_lit = lit_cells(fields)
    change = changes(fields, small_lit)
    jumps = find_jumps(keys, change)
    # In a mosaic the beam may change with every tile, and overlaps told the fit how.
    if fit is None and (conditions.base is None or scan.corner_px is None):
        fields = settle(fields, small_lit, keys, jumps, settle_keys)
    scale = "relative"
    absolute = [r for r in references if r.absolute]
    if fit is None:
        fields = steady_levels(fields, small_lit, _expected(conditions, exposure, keys, small_lit))
    if scale_roi is not None:
        scale = "scale-roi"
    elif fit is not None:
        scale = scale_text(references, fit)
    elif absolute:
        fields = anchor(
            fields, small_lit, absolute[0].log_exposure[keys], absolute[0], survey.factor
        )
        scale = f"reference ({absolute[0].origin}, exposure and current recorded)"
    lit = _lit_pixels(survey, small_lit)
    details, shares = _fine(scan, seen, fields, small_lit, lit, memory, pieces)
    course = exposure if fit is None else fit.levels.level
    amplitude = amplitudes(survey, fields, keys, jumps, small_lit, course)
    expected = None if fit is None else fit.expected()
    flag, leak = flag_frames(survey, keys, fields, std, small_lit, jumps, expected)
    blind = not references and not conditions.remembered
    return Background(
        keys=keys,
        jumps=jumps,
        fields=fields,
        std=std,
        details=(details,),
        shares=shares,
        factor=survey.factor,
        amplitude=amplitude,
        flag=flag,
        lit=lit,
        dark=survey.dark,
        scale=scale,
        notes=(*seen.notes, *conditions.notes, *(() if fit is None else fit.notes)),
        referenced=model.spec.condition == "stack" and len(references) > 0,
        remembered=conditions.remembered,
        standing="" if seen.standing is None else str(seen.standing),
        leak=leak,
        conditions=conditions,
        grain=pattern.grain,
        remarks=(*seen.remarks, *(["flats generated: as asked"] if flats == "generated" else [])),
        decided=("generated by the model" if fit is None else fit.decided(survey.factor))
        + (": as asked" if flats == "generated" else ""),
        expected=expected,
        hopeless=STATIC if blind and is_static(survey, small_lit) else "",
    )


def scale_text(references: tuple[Reference, ...], fit: BackgroundFit) -> str:
    """Where the level of T = 1 comes from."""
    origin = references[-1].origin
    exposed = all(r.exposed for r in references)
    said = "exposure recorded" if exposed else "exposure not recorded, taken as equal"
    current = next((r.current for r in references if r.current), "")
    parts = [origin, said, current]
    share = float(fit.levels.observed.mean())
    if share > 0:
        parts.append(f"vacuum seen in {100 * share:.0f} % of the frames")
    return f"reference ({', '.join(p for p in parts if p)})"


def _measured_because(flats: str, survey: Survey) -> str:
    """Why flats are used as they were measured, "" where they are not."""
    if flats == "measured":
        return "as asked"
    if flats == "auto" and survey.usable.sum() == 1:
        return "one frame alone does not show how the beam has changed"
    return ""


def _as_measured(
    scan: Scan,
    survey: Survey,
    references: tuple[Reference, ...],
    why: str,
    scale_roi: tuple[int, int, int, int] | None,
) -> Background:
    """The background as the flats have it.

    Raises
    ------
    FlatFieldError : there are none.
    """
    if not references:
        raise FlatFieldError(
            f"{scan.path}: expected flats in the scan for --flats measured, found none; "
            "give some with --refs, or use --flats generated"
        )
    found = measured_background(references, survey)
    jumps = np.zeros(0, np.intp)
    cells = lit_cells(found.fields)
    flag, _ = flag_frames(survey, found.keys, found.fields, found.std, cells, jumps)
    return Background(
        keys=found.keys,
        jumps=jumps,
        fields=found.fields,
        std=found.std,
        details=(found.details,),
        shares=found.shares,
        factor=survey.factor,
        amplitude=found.amplitude,
        flag=flag & ~np.uint32(Flag.LEAK),  # flats hold no sample
        lit=_lit_pixels(survey, cells) & found.lit,
        dark=survey.dark,
        scale=found.scale if scale_roi is None else "scale-roi",
        notes=found.notes,
        leak=np.zeros(len(found.keys)),
        grain=found.grain,
        remarks=(*(note for r in references for note in r.notes), f"flats measured: {why}"),
        decided=f"measured flats: {why}",
    )


def _lit_pixels(survey: Survey, cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels `(h, w)` that work, in cells with light."""
    h, w = survey.dark.shape
    light = torch.from_numpy(cells.astype(np.float32))[None]
    return (spread_out(light, survey.factor, (h, w))[0].numpy() > 0.5) & ~survey.broken


def look_at(
    scan: Scan,
    model: Model,
    *,
    references: tuple[Reference, ...] = (),
    dark: NDArray[np.float32] | None = None,
    interval: int = 1,
    partners: int = 4,
    memory: int = 2 * 1024**3,
    report: Report = silent,
    pieces: Pieces | None = None,
    survey: Survey | None = None,
) -> Seen:
    """Everything before the network; parameters as of `estimate_background`. `survey` : if it is known."""
    pieces = pieces or InMemory()
    if survey is None:
        dark = scan_dark(scan) if dark is None else dark
        survey = survey_scan(
            scan, dark, model.spec.size, memory, lambda d, t: report("looking", d, t), pieces
        )
    fixed = fixed_of(scan, survey, references, memory, pieces)
    pattern, standing, notes = fixed.pattern, fixed.standing, fixed.notes(references)
    remarks = tuple(note for reference in references for note in reference.notes)
    references = fixed.fitting(references, survey.factor)
    if standing is not None:
        log.info("%s", standing)
        scan, survey = without(scan, survey, standing)
    if not survey.dark_known:
        log.warning("no dark frames: zero counts are taken for no light")
    exposure = _log_exposure(scan)
    conditions = _conditions(
        scan,
        model,
        survey,
        pattern.detail,
        references,
        exposure,
        interval,
        partners,
        standing,
    )
    return Seen(survey, pattern, references, notes, exposure, conditions, standing, remarks)


def _conditions(
    scan: Scan,
    model: Model,
    survey: Survey,
    detail: NDArray[np.float32],
    references: tuple[Reference, ...],
    exposure: NDArray[np.float64] | None,
    interval: int,
    partners: int,
    standing: Standing | None,
) -> Conditions:
    """What the model sees of a frame."""
    photons = survey.photons * survey.factor**2
    if model.spec.condition == "stack":
        shared: tuple[Shared, ...] = ()
        if scan.corner_px is not None:
            shared = read_overlaps(scan.projections, survey, detail, scan.corner_px)
        doubt = None
        if standing is not None:
            doubt = bin_mean(torch.from_numpy(standing.open(scan.shape[1:])), survey.factor).numpy()
        known = known_scan(survey, references, exposure, shared, scan.turns, doubt, scan.time_s)
        return stack_conditions(with_remembered(known, model.beams), model.spec.extra)
    return pair_conditions(survey.small, survey.usable, interval, photons, partners)


def _key_fields(
    survey: Survey,
    model: Model,
    conditions: Conditions,
    draw: Draw,
    every: int | None,
    report: Report,
    pieces: Pieces,
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """Generate key frames; where the plan is ours, add more where the beam changed quickly."""
    usable, rounds = survey.usable, 0

    def make(targets: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        def batch(number: int) -> Mapping[str, Array]:
            some = targets[number * BATCH : (number + 1) * BATCH]
            mean, std = generate(model, conditions, some, draw, lambda done, total: None)
            return {"mean": mean, "std": std}

        def progress(done: int, _: int) -> None:
            report("generating", min(done * BATCH, len(targets)), len(targets))

        batches = list(pieces.each(f"key{rounds}", -(-len(targets) // BATCH), batch, progress))
        return (
            np.concatenate([b["mean"] for b in batches]),
            np.concatenate([b["std"] for b in batches]),
        )

    keys = first_plan(usable, every)
    fields, std = make(keys)
    while every is None:
        more = refinement(keys, changes(fields, lit_cells(fields)), usable)
        if len(more) == 0:
            break
        rounds += 1
        new_fields, new_std = make(more)
        order = np.argsort(np.concatenate([keys, more]))
        keys = np.concatenate([keys, more])[order]
        fields = np.concatenate([fields, new_fields])[order]
        std = np.concatenate([std, new_std])[order]
    return keys, fields, std


def _fine(
    scan: Scan,
    seen: Seen,
    fields: NDArray[np.float32],
    cells: NDArray[np.bool_],
    lit: NDArray[np.bool_],
    memory: int,
    pieces: Pieces,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """What is finer than the grid: patterns `(c, h, w)`, and how much of each key frames have, `(k, c)`."""

    def make(_: int) -> Mapping[str, Array]:
        detail, shares = seen.pattern.detail, np.ones((len(fields), 1))
        found = moving_pattern(scan, seen.survey, seen.references, fields, cells, lit, memory)
        if found is None:
            return {"details": detail[None], "shares": shares}
        return {
            "details": np.concatenate([found.detail[None], found.images]),
            "shares": np.concatenate([shares, found.shares], 1),
        }

    (made,) = pieces.each("moving", 1, make)
    return made["details"], made["shares"]


def _expected(
    conditions: Conditions,
    exposure: NDArray[np.float64] | None,
    keys: NDArray[np.intp],
    lit: NDArray[np.bool_],
) -> NDArray[np.float64] | None:
    """Level of key frames `(k,)` where exposures are recorded: the fit's, if any, which knows of overlaps."""
    if exposure is None:
        return None
    return (
        exposure[keys] if conditions.base is None else level_of(conditions.base.fields(keys), lit)
    )


def _log_exposure(scan: Scan) -> NDArray[np.float64] | None:
    """Log of recorded exposure x current per frame, relative to the median; None if not recorded."""
    if scan.current_ma is None or not (scan.current_ma > 0).all():
        return None
    product = scan.current_ma.astype(np.float64)
    if scan.exposure_s is not None and (scan.exposure_s > 0).all():
        product = product * scan.exposure_s
    return np.log(product / np.median(product))
