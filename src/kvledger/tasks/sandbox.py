"""Runs programs that a model wrote. Only if asked to: `KVLEDGER_RUN_CODE=1`.

A program gets a temporary folder, an empty environment, limits of the kernel on time, memory, processes, open files and
written bytes (its output goes to a file, so that limit caps it), and is killed with its children when its time is up.
Where `unshare` may make namespaces it has no network and cannot signal other processes; `Result.isolated` says whether.  It can
still read what the user can read: run it as a user, or in a container, that holds no secrets.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

SWITCH = "KVLEDGER_RUN_CODE"
ALONE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--ipc")
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Wall and processor seconds, bytes of address space, bytes of any written file, processes."""

    seconds: float = 3.0
    memory: int = 512 * MEGABYTE
    written: int = 4 * MEGABYTE
    processes: int = 64


@dataclass(frozen=True)
class Result:
    """`status` is the exit code, negative for a signal, None where the time was up."""

    status: int | None
    output: str
    errors: str
    isolated: bool

    @property
    def ok(self) -> bool:
        return self.status == 0


def allowed() -> bool:
    """Whether running model code was asked for."""
    return os.environ.get(SWITCH) == "1"


def check() -> None:
    """ValueError unless running model code was asked for."""
    if not allowed():
        raise ValueError(
            f"scoring this task runs programs that the model wrote; set {SWITCH}=1 to allow it (in a container or as a user "
            "without secrets), or leave the task out"
        )


@cache
def isolation() -> tuple[str, ...]:
    """The command that cuts a program off from the network and other processes; () where it is not allowed to."""
    if not shutil.which(ALONE[0]):
        return ()
    tried = subprocess.run([*ALONE, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    return ALONE if tried.returncode == 0 else ()


def run(command: Sequence[str], folder: Path, stdin: str = "", limits: Limits | None = None) -> Result:
    """Runs `command` in `folder` under `limits`. Output beyond the limit is lost; text that is no UTF-8 is replaced."""
    check()
    limits = limits or Limits()
    bounds = _bounds(limits)
    given, said, wrong = (folder / f".{name}" for name in ("stdin", "stdout", "stderr"))
    given.write_text(stdin, encoding="utf-8")
    with given.open("rb") as source, said.open("wb") as output, wrong.open("wb") as errors:
        process = subprocess.Popen(
            [*isolation(), *command],
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C"},
            stdin=source,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            preexec_fn=partial(_bind, bounds),
        )
        status = _wait(process, limits.seconds)
    texts = [path.read_bytes()[: limits.written].decode("utf-8", errors="replace") for path in (said, wrong)]
    return Result(status, texts[0], texts[1], bool(isolation()))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too; it leads a session of its own
        process.wait()


def _bind(bounds: list[tuple[int, int]]) -> None:
    for what, top in bounds:
        resource.setrlimit(what, (top, top))


def _bounds(limits: Limits) -> list[tuple[int, int]]:
    """What the kernel will not let the program exceed. Found before the fork: after it, as little as possible may happen."""
    wanted = (
        (resource.RLIMIT_CPU, int(limits.seconds) + 1),
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, limits.written),
        (resource.RLIMIT_NPROC, _processes() + limits.processes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    )
    hard = {what: resource.getrlimit(what)[1] for what, _ in wanted}
    return [(what, most if hard[what] == resource.RLIM_INFINITY else min(most, hard[what])) for what, most in wanted]


def _processes() -> int:
    """How many threads this user has; the kernel's limit counts them all."""
    count = 0
    for tasks in Path("/proc").glob("[0-9]*/task"):
        try:
            if tasks.stat().st_uid == os.getuid():
                count += sum(1 for _ in tasks.iterdir())
        except OSError:
            continue
    return count
