"""`evaluate`: against truth, on references alone, and against peers."""

from __future__ import annotations

from pathlib import Path

from txmcorrect.config import EvaluateSettings, UsageError
from txmcorrect.report.page import Page, write_png
from txmcorrect.result import Result
from txmcorrect.scoring import comparison, references, truth
from txmcorrect.scoring.output import (
    json_text,
    markdown_table,
    number,
    say,
    write_json,
    write_text,
)


def run(settings: EvaluateSettings) -> Result:
    """Score what was asked for, print the table, and write table, JSON, picture and page.

    Raises
    ------
    UsageError : not exactly one of RESULT with --truth, --refs and --compare was given.
    """
    against_truth = settings.result is not None and settings.truth is not None
    wanted = [against_truth, settings.refs is not None, settings.compare]
    if sum(wanted) != 1:
        raise UsageError(
            "evaluate: expected RESULT with --truth FILE, or --refs REFS, or --compare; "
            f"got {_given(settings) or 'none of them'}"
        )
    if settings.result is not None and settings.truth is not None:
        return _score_truth(settings, settings.result, settings.truth)
    if settings.refs is not None:
        return references.run(settings, settings.refs)
    return comparison.run(settings)


def _given(settings: EvaluateSettings) -> str:
    names = {
        "RESULT": settings.result,
        "--truth": settings.truth,
        "--refs": settings.refs,
        "--compare": settings.compare or None,
    }
    return ", ".join(name for name, value in names.items() if value is not None)


def _score_truth(settings: EvaluateSettings, result: Path, truth_path: Path) -> Result:
    scores = truth.score_result(result, truth_path)
    folder = settings.out or result.with_name(result.stem + ".scores")
    folder.mkdir(parents=True, exist_ok=True)
    summary = scores.summary()
    rows = [(name.replace("_", " "), number(value)) for name, value in summary.items()]
    header = ("figure", "value")
    figure = truth.draw_scores(scores)
    page = Page(
        f"{result.name} against {truth_path.name}", scores.verdict, f"scale: {scores.scale}"
    )
    page.table(rows, header).figure(figure, "The frame whose background is worst, and all frames.")
    per_frame = {
        name: getattr(scores, name)
        for name in ("psnr", "psnr_scaled", "ssim", "mae", "gain", "log_rms", "flagged")
    }
    body = {"result": result.name, "summary": summary, "frames": per_frame, "scale": scores.scale}
    table = markdown_table(rows, header)
    slices = truth.draw_slices(scores)
    if slices is not None:
        page.figure(
            slices, "The middle slice: as found, of the true transmission, their difference."
        )
    outputs = (
        write_text(folder / "scores.md", table + "\n"),
        write_json(folder / "scores.json", body),
        write_png(figure, folder / "scores.png"),
        page.write(folder / "scores.html"),
        *([] if slices is None else [write_png(slices, folder / "slices.png")]),
    )
    say(settings, json_text(body) if settings.json_output else table)
    return Result(outputs)
