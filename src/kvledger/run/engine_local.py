"""Processes of this machine: one for each device, or as many as wanted on a CPU.  (no torch)

A process is started anew, not forked, so it has its own devices and threads from the beginning.  It stops when whoever
started it does: its pipe ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

from kvledger.run.engine import Lost, Make, Message, Order, Service


class Local:
    """`size` processes, each with `each` of the `cards` (names as in CUDA_VISIBLE_DEVICES; none: the CPU), in turn."""

    def __init__(self, make: Make, size: int, cards: Sequence[str] = (), each: int = 1):
        self.make, self.size, self.cards, self.each = make, size, tuple(cards), each

    def hire(self, number: int) -> Process:
        with _environment(self._environment(number)):
            return Process(self.make)

    def wait(self, hands: Sequence[Process]) -> Sequence[Process]:
        ready = wait([hand.pipe for hand in hands])
        return [hand for hand in hands if hand.pipe in ready]

    def close(self) -> None:
        pass

    def _environment(self, number: int) -> dict[str, str]:
        """Its cards; or its share of the cores, unless the user has said how many threads there shall be."""
        if self.cards:
            mine = [self.cards[(number * self.each + i) % len(self.cards)] for i in range(self.each)]
            return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
        threads = str(max(1, (os.cpu_count() or 1) // self.size))
        return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}


class Process:
    """A worker in a process of its own."""

    def __init__(self, make: Make):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make), daemon=True)
        self.process.start()
        there.close()

    def give(self, order: Order) -> None:
        try:
            self.pipe.send(order)
        except OSError:
            raise self._lost() from None

    def hear(self) -> Message:
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        return message

    def dismiss(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()

    def _lost(self) -> Lost:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return Lost(f"killed by {signal.Signals(-code).name}" + (": out of memory?" if code == -9 else ""))
        return Lost(f"exit status {code}")


def _serve(pipe: Connection, make: Make) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the one that started us decides
    service = Service(make)
    try:
        for message in service.begin():
            pipe.send(message)
        while True:
            for message in service.obey(pipe.recv()):
                pipe.send(message)
    except (EOFError, OSError):  # whoever gave the orders is gone
        return


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """For a process that starts inside: it must find them before it imports anything."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cards() -> list[str]:
    """The CUDA devices of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]
