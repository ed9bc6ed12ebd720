"""Actors of a Ray cluster, each with a model: of the cluster that RAY_ADDRESS names or that runs here, else of one that is
started for the run.  (no torch)

An actor's messages are a stream of Ray objects, which ends with an error when the actor or its machine is lost; the crew then
hires another one.  Ray itself restarts nothing, since an order has to be given again less what had been told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvledger.run.engine import Lost, Make, Message, Order, Service


class Ray:
    """`size` actors (0: as many as the cluster's GPUs suffice for, one for each machine without any), each with `each` GPUs
    where there are some. ValueError if the cluster has too few."""

    def __init__(self, make: Make, size: int = 0, each: int = 1):
        import ray

        self.ray, self.make = ray, make
        self.started = not ray.is_initialized()
        if self.started:
            ray.init(include_dashboard=False, logging_level="warning")
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self.each = each if gpus else 0
        if self.each > gpus:
            self.close()
            raise ValueError(f"devices={each}: the Ray cluster has {gpus} GPUs")
        self.size = size or (gpus // each if gpus else len(ray.nodes()))

    def hire(self, number: int) -> Actor:
        return Actor(self.ray, self.ray.remote(Service).options(num_gpus=self.each, max_restarts=0).remote(self.make))

    def wait(self, hands: Sequence[Actor]) -> Sequence[Actor]:
        ready, _ = self.ray.wait([hand.stream for hand in hands], num_returns=1)
        return [hand for hand in hands if hand.stream in ready]

    def close(self) -> None:
        if self.started:
            self.ray.shutdown()


class Actor:
    """A worker on the cluster."""

    def __init__(self, ray: Any, actor: Any):
        self.ray, self.actor = ray, actor
        self.stream = actor.begin.options(num_returns="streaming").remote()

    def give(self, order: Order) -> None:
        self.stream = self.actor.obey.options(num_returns="streaming").remote(order)

    def hear(self) -> Message:
        try:
            message: Message = self.ray.get(next(self.stream))
        except self.ray.exceptions.RayActorError as error:
            raise Lost(str(error).strip().splitlines()[0]) from None
        return message

    def dismiss(self) -> None:
        self.ray.kill(self.actor)
