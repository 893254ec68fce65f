"""`python -m traced_tasks`: see what it does."""

import argparse
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Event

_DESCRIPTION = """\
Tell three stories of background tasks, with real servers and real requests, and draw the recorded spans as timelines.
checkout: a task makes a slow HTTP call behind the response; with FastAPI's BackgroundTasks, with TracedBackgroundTasks,
and in the link style. lost: of four tasks the second fails; with BackgroundTasks, with TracedBackgroundTasks, and with
on_error="continue". workers: the task of the checkout runs in a Taskiq worker, a process of its own.
"""

_EPILOG = """\
If OTEL_EXPORTER_OTLP_ENDPOINT is set (http://localhost:4318, for example), the spans are sent there as well, by
OTLP over HTTP, to be looked at in Jaeger or Tempo.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the stories.

    Args:
        arguments: Those of the command line.

    Returns:
        The exit code: 0, or 2 if the story cannot be told, 1 if nobody listens any longer, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser("python -m traced_tasks", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "--svg",
        metavar="FILE",
        type=Path,
        help="write the same picture to FILE, as SVG, and beside story.svg one for small screens, story.narrow.svg",
    )
    parser.add_argument("--story", choices=["checkout", "lost", "workers"], help="tell this one only")
    parser.add_argument("--serve", action="store_true", help="run the shop of the stories, with its live page")
    options = parser.parse_args(arguments)
    svg: Path | None = options.svg
    try:
        if options.serve:
            return _serve()
        if svg:
            _check_writable(svg)
            _check_writable(_narrow(svg))
        return _tell(options.story, svg)
    except ImportError as exc:
        return _stop(f'this needs the extra "demo" ({_missing(exc)}): pip install "traced-tasks[demo]"', 2)
    except OSError as exc:
        return _stop(str(exc), 2)
    except KeyboardInterrupt:
        return _stop("interrupted", 130)


def _tell(story: str | None, svg: Path | None) -> int:
    # Not at the top of the module: without the extra there should be a clear line.
    import_module("fastapi.telemetry")
    from rich.console import Console

    from traced_tasks.demo.story import tell
    from traced_tasks.demo.svg import NARROW, WIDE, save_svg

    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        # Where the encoding knows little, a name with a question mark is better than none.
        reconfigure(errors="replace")
    try:
        shown = tell(Console(highlight=False), story)
    except SystemExit:  # which is what rich makes of a broken pipe
        return _stop("the output was closed before the story ended", 1)
    if svg:
        for path, width in (svg, WIDE), (_narrow(svg), NARROW):
            with _named(path):
                save_svg(path, shown, width)
    return 0


def _serve() -> int:
    import_module("fastapi.telemetry")
    from traced_tasks.demo.shop import serve_shop

    with suppress(KeyboardInterrupt), serve_shop() as url:
        print(f"The shop is open: {url}/ (Ctrl-C to close)", flush=True)
        Event().wait()
    return 0


def _narrow(svg: Path) -> Path:
    return svg.with_name(f"{svg.stem}.narrow{svg.suffix}")


def _check_writable(path: Path) -> None:
    with _named(path):
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()


@contextmanager
def _named(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as exc:
        raise OSError(f"cannot write {path}: {exc.strerror}") from exc


def _missing(exc: ImportError) -> str:
    return "FastAPI 0.142 or newer" if exc.name == "fastapi.telemetry" else str(exc)


def _stop(message: str, code: int) -> int:
    print(f"python -m traced_tasks: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
