"""Running commands with a time limit, waiting with a time limit, and saying how long each step took."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from e2e.cluster.errors import ClusterError, CommandError

T = TypeVar("T")


def say(text: str) -> None:
    """Progress goes to stderr, so that stdout holds only what the caller asked for (a path, a name)."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print how long a part of the work took."""
    started = time.monotonic()
    yield
    say(f"  {time.monotonic() - started:6.1f} s  {title}")


def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Run a command to its end and return its output; with `log`, the output goes there as it comes."""
    words = [str(word) for word in command]
    environment = {**os.environ, **env} if env else None
    sink = log.open("ab") if log else subprocess.PIPE
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=environment,
            input=stdin.encode() if stdin is not None else None,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=sink,
            stderr=subprocess.STDOUT if log else subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandError(f"command {words[0]!r} is not installed", f"install it: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(words)}: no end after {timeout:.0f} s", _log_hint(log)) from error
    finally:
        if not isinstance(sink, int):
            sink.close()
    if done.returncode != 0:
        said = tail(log) if log else (done.stderr or done.stdout or b"").decode(errors="replace").strip()
        raise CommandError(f"{' '.join(words)}: exit status {done.returncode}\n{said}", _log_hint(log))
    return (done.stdout or b"").decode(errors="replace")


def succeeds(command: Sequence[str | Path], *, timeout: float = 20) -> bool:
    """Whether a command ends well; for probes and for deleting what may not be there."""
    try:
        run(command, timeout=timeout)
    except CommandError:
        return False
    return True


def _log_hint(log: Path | None) -> str:
    return f"the whole log is {log}" if log else ""


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log file, for error messages."""
    if not path.exists():
        return f"({path} does not exist)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def wait_for(what: str, probe: Callable[[], T | None], *, timeout: float, every: float = 0.2) -> T:
    """Call `probe` until it returns something true; an error of the API meanwhile counts as "not yet"."""
    deadline = time.monotonic() + timeout
    last = "nothing yet"
    while time.monotonic() < deadline:
        try:
            found = probe()
            if found:
                return found
        except (OSError, ClusterError) as error:
            last = str(error)
        time.sleep(every)
    raise ClusterError(f"waited {timeout:.0f} s for {what} in vain (last answer: {last})")


@contextmanager
def locked(path: Path, *, timeout: float = 1800) -> Iterator[None]:
    """Hold a file lock, so that two runs at the same time do not build or change the same thing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        deadline = time.monotonic() + timeout
        announce = time.monotonic() + 3
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > announce:
                    say(f"waiting for another run that holds {path}")
                    announce = deadline
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"another run has held {path} for {timeout:.0f} s", "end that run, then try again"
                    ) from None
                time.sleep(0.5)
        yield


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """A reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.chmod(mode)
    part.replace(path)
