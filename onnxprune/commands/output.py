"""What a verb leaves behind: files that appear whole or not at all, a table, a sign of life."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from onnxprune.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PATIENCE = 1.0  # seconds before the progress display shows up; it moves little, since latencies are measured
Put = Callable[[str, str | bytes], None]


def check_paths(inputs: Mapping[str, str | None], outputs: Mapping[str, str | None]) -> None:
    """Refuse to write over an input, or twice to one place, or a model to standard output.

    Raises:
        OutputError: with the two options that meet.
    """
    if outputs.get("-o") == "-":
        raise OutputError("-o -: a model is not written to standard output; name a file")
    seen = {_place(path): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        other = seen.setdefault(_place(path), name)
        if other != name:
            raise OutputError(f"{path}: is both {other} and {name}; choose another file for {name}")


def _place(path: str) -> str:
    return path if path == "-" else os.path.realpath(path)


@contextmanager
def files(**paths: str | None) -> Iterator[Put]:
    """Open every file at once, so that a bad path shows before the work; move them into place at the end.

    Yields:
        A function that takes a file's keyword and its text or bytes; files that are not wanted are passed over.

    Raises:
        OutputError: a file cannot be written.
    """
    with ExitStack() as stack:
        wanted = {name: Path(path) for name, path in paths.items() if path is not None and path != "-"}
        drafts = {name: stack.enter_context(_draft(path)) for name, path in wanted.items()}
        said: list[str] = []

        def put(name: str, text: str | bytes) -> None:
            if name in drafts:
                try:
                    drafts[name].write(text.encode() if isinstance(text, str) else text)
                    drafts[name].flush()
                except OSError as error:
                    raise _refused(wanted[name], error) from error
            elif paths[name] == "-":
                said.append(text if isinstance(text, str) else text.decode())

        yield put
    _say(said)


@contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name; a device or a pipe is written as it is."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as file:
                yield file
            return
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        temporary = path.parent / f".onnxprune-{os.getpid()}-{path.name}"
        file = temporary.open("xb")
    except OSError as error:
        raise _refused(path, error) from error
    try:
        with file:
            yield file
        if temporary.stat().st_size:  # nothing was said: a plan of a run that failed its gate
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another path")


def show(parts: list[RenderableType], *elsewhere: str | None, quiet: bool = False) -> None:
    """Print to standard output, unless that is taken by a file (`-`) or nobody listens."""
    if quiet or "-" in elsewhere:
        return
    console = _console()
    with console.capture() as text:
        for part in parts:
            console.print(part)
    _say(f"{line.rstrip()}\n" for line in text.get().splitlines())


def show_names(entries: Iterable[tuple[str, str]]) -> None:
    """Print names with a line on each: in columns on a terminal, else a line an entry, for grep."""
    if sys.stdout.isatty():
        from onnxprune.report import names

        show([names(entries)])
        return
    known = list(entries)
    width = max((len(name) for name, _ in known), default=0)
    _say(f"{name:{width}}  {text}\n" for name, text in known)


def _say(lines: Iterable[str]) -> None:
    """Write to standard output.

    Raises:
        OutputError: it takes no more, as on a full disk; a reader that left (`BrokenPipeError`) is click's to handle.
    """
    try:
        sys.stdout.writelines(lines)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes there at exit
        raise _refused(Path("standard output"), error) from error


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, stderr=stderr)


class Progress:
    """A spinner on standard error that names the stage, if it takes long and somebody looks."""

    def __init__(self, quiet: bool = False) -> None:
        """`quiet`: never."""
        self.on = not quiet and sys.stderr.isatty()
        self._stage = ""
        self._status: Any = None
        self._timer = threading.Timer(PATIENCE, self._start)
        self._timer.daemon = True

    def __enter__(self) -> Progress:
        """Start to wait."""
        if self.on:
            self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the display away."""
        self._timer.cancel()
        if self.on and self._timer.ident is not None:
            self._timer.join()
        if self._status is not None:
            self._status.stop()

    def __call__(self, stage: str) -> None:
        """The name of what begins now."""
        self._stage = stage
        if self._status is not None:
            self._status.update(f"{stage} ...")

    def _start(self) -> None:
        self._status = _console(stderr=True).status(f"{self._stage} ...", refresh_per_second=4)
        self._status.start()
