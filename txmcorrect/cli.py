"""Typer commands. Options come from the settings models; workflows are imported when they run."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.logging import RichHandler

from txmcorrect import __version__, config
from txmcorrect.errors import OutputError, TxmError

log = logging.getLogger(__name__)

app = typer.Typer(
    name="txmcorrect",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Background correction of transmission X-ray microscope images with diffusion models.",
)

COMMANDS: dict[str, tuple[type[config.Settings], str]] = {
    "info": (config.InfoSettings, "txmcorrect.info"),
    "simulate": (config.SimulateSettings, "txmcorrect.synthesize"),
    "prepare": (config.PrepareSettings, "txmcorrect.prepare"),
    "train": (config.TrainSettings, "txmcorrect.train"),
    "correct": (config.CorrectSettings, "txmcorrect.correct"),
    "mosaic": (config.MosaicSettings, "txmcorrect.mosaic"),
    "tomo": (config.TomoSettings, "txmcorrect.tomo"),
    "restore": (config.RestoreSettings, "txmcorrect.restore"),
    "evaluate": (config.EvaluateSettings, "txmcorrect.score"),
}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"txmcorrect {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Say what the program is; the commands do the work."""


def _flag_type(annotation: Any) -> Any:
    """The type the command line parses; unions with None and parsed texts become plain ones."""
    if get_origin(annotation) is Annotated:
        return _flag_type(get_args(annotation)[0])
    members = [a for a in get_args(annotation) if a is not type(None)]
    if type(None) in get_args(annotation):
        return _flag_type(members[0]) if len(members) == 1 else str
    if annotation in (str, int, float, bool, Path, list[Path]) or str(annotation).startswith(
        "typing.Literal"
    ):
        return annotation
    return str  # sizes, slices, regions, "auto or a number": validated by the model


def _default_text(value: Any) -> str:
    if value is None or value is False:
        return ""
    if isinstance(value, tuple):
        value = "x".join(map(str, value))
    return f" [default: {value}]"


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Turn a settings field into a Typer parameter that stays None unless given."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind: Any = str if field.metadata and name in PARSED else _flag_type(field.annotation)
    help_text = f"{field.description}"
    if extra.get("argument"):
        required = field.is_required()
        annotation: Any = Annotated[
            kind if required else kind | None, typer.Argument(help=help_text, show_default=False)
        ]
        default = inspect.Parameter.empty if required else None
        position = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Parameter(name, position, default=default, annotation=annotation)
    flags = str(extra.get("flags") or "").split() or ["--" + name.replace("_", "-")]
    info = typer.Option(
        *flags,
        help=help_text + _default_text(field.default).replace("[", r"\["),
        show_default=False,
        count=name == "verbose",
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )


PARSED = {"memory", "frames", "roi", "scale_roi", "grid"}


def _signature(settings: type[config.Settings]) -> inspect.Signature:
    nested = {
        name
        for name, field in settings.model_fields.items()
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
    }
    parameters = [_parameter(n, f) for n, f in settings.model_fields.items() if n not in nested]
    parameters.sort(key=lambda p: p.kind)
    return inspect.Signature(parameters)


def _make_command(settings: type[config.Settings], module: str) -> Callable[..., None]:
    def command(**given: Any) -> None:
        wanted = {name: value for name, value in given.items() if value not in (None, [])}
        if not wanted.get("verbose"):
            wanted.pop("verbose", None)
        resolved = config.load_settings(settings, wanted)
        _start_log(resolved)
        if resolved.dry_run:
            typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)
            return
        try:
            result = importlib.import_module(module).run(resolved)
        except KeyboardInterrupt:  # Typer would exit in silence
            typer.echo("interrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
        except OSError as error:  # a mount that went away may show in any call
            log.debug("the operating system failed us", exc_info=True)
            raise _vanished(error) from None
        if result.message:
            typer.echo(result.message)
        raise typer.Exit(result.exit_code)

    signature = _signature(settings)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    command.__doc__ = f"{settings.summary}\n\nExample: {settings.example}"
    return command


for _name, (_settings, _module) in COMMANDS.items():
    app.command(_name)(_make_command(_settings, _module))


def _vanished(error: OSError) -> OutputError:
    """One line for a failure of the system that no reader or writer has put into words."""
    where = f"{error.filename}: " if error.filename else ""
    return OutputError(
        f"{where}expected to read and write there, got: {error.strerror or error}; see that disk "
        "and mounts are back, and run the same command again"
    )


def _start_log(settings: config.Settings) -> None:
    """Log to stderr, and to --log-file where given; only our own loggers are touched."""
    level = (
        logging.DEBUG if settings.verbose else logging.WARNING if settings.quiet else logging.INFO
    )
    ours = logging.getLogger("txmcorrect")
    ours.setLevel(level)
    ours.handlers.clear()
    console = Console(stderr=True)
    ours.addHandler(RichHandler(console=console, show_path=False, show_time=False))
    if settings.log_file:
        try:
            handler = logging.FileHandler(settings.log_file)
        except OSError as error:
            raise TxmError(f"--log-file {settings.log_file}: cannot be written ({error})") from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        ours.addHandler(handler)


def main() -> None:
    """Run a command; a user's mistake is one red line and exit 1."""
    try:
        app()
    except TxmError as error:
        Console(stderr=True, soft_wrap=True).print("Error:", style="bold red", end=" ")
        typer.echo(str(error), err=True)
        sys.exit(2 if isinstance(error, config.UsageError) else 1)
