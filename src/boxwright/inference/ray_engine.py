"""`predict --engine ray`: Ray Data gives the parts of a job to actors, each of which holds the detector.

A part that is lost with its worker is done again by another one; what was written is never half a part.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from boxwright.checkpoints.locate import is_own
from boxwright.config import UserError, require
from boxwright.extras import how_to_install
from boxwright.files import as_location
from boxwright.inference.job import Job, Worker
from boxwright.inference.parts import Manifest, Part

MOST_IMAGES, LEAST_PARTS = 1000, 16  # of a part, and of a job, as far as it has so many batches
_STORE = 2**27  # bytes of memory that a local cluster shares; only numbers go through it


def do_parts(worker: Worker, address: str | None) -> Iterator[Manifest]:
    """Do all parts of a job that are not done yet; the manifest of each part as soon as it is there.

    Args:
        worker: of this process, with the job.
        address: of a running cluster; None takes that of `RAY_ADDRESS`, or else starts one on this machine.

    Raises:
        ModuleNotFoundError: with one clear line, if Ray is not installed.
        UserError: if there is no such cluster, or a worker can't do its part.
    """
    parts = divide(len(worker.images), worker.job.batch_size)
    before = {part: worker.done(part) for part in parts}
    yield from (manifest for manifest in before.values() if manifest)
    todo = [part for part, manifest in before.items() if not manifest]
    for part in _compute(_everywhere(worker.job), todo, address) if todo else ():
        manifest = worker.done(part)
        fix = "all machines must share this folder"
        require(manifest, f"part {part} was done, but is not in {worker.job.out.absolute()} here: {fix}.")
        assert manifest
        yield manifest


def divide(images: int, batch_size: int) -> list[Part]:
    """The parts of so many images."""
    count = max(math.ceil(images / MOST_IMAGES), min(LEAST_PARTS, math.ceil(images / batch_size)))
    return [Part(number, count) for number in range(1, count + 1)]


class Actor:
    """A process of the cluster, which holds the detector.

    Args:
        job: with whole paths.
    """

    def __init__(self, job: Job):
        self.job = job

    @cached_property
    def worker(self) -> Worker:
        """It opens the detector."""
        return Worker(self.job, self.job.images())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a part: the same row, and a user's mistake in words, or an empty text."""
        part = Part(int(row["number"]), int(row["count"]))
        try:
            if not self.worker.done(part):
                self.worker.do(part)
        except UserError as error:
            return row | {"error": str(error)}
        return row | {"error": ""}


def _compute(job: Job, parts: list[Part], address: str | None) -> Iterator[Part]:
    """Each part as soon as it is done."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would be sent to Ray's authors
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(how_to_install("--engine ray", error.name), name=error.name) from error

    connect(ray, address)
    try:
        there = ray.cluster_resources()
        kind = "GPU" if job.device.startswith("cuda") or (job.device == "auto" and there.get("GPU")) else "CPU"
        actors = min(len(parts), int(there.get(kind, 0)))
        require(actors, f"the Ray cluster has no {kind} to compute on.")
        rows = ray.data.from_items([vars(part) for part in parts], override_num_blocks=len(parts))
        strategy = ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1)
        share: dict[str, Any] = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        results: Any = rows.map(Actor, fn_constructor_args=(job,), compute=strategy, **share)  # type: ignore[bad-argument-type]
        for row in results.iter_rows():
            require(not row["error"], row["error"])
            yield Part(row["number"], row["count"])
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray stopped: {' '.join(str(error).split())[-300:]}") from error
    finally:
        ray.shutdown()


def connect(ray: Any, address: str | None) -> None:
    """Join a cluster, or start one; see `do_parts`.

    Args:
        ray: the module.
        address: see `do_parts`.

    Raises:
        UserError: there is no such cluster, or none can be started.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    local = {"object_store_memory": _STORE, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except Exception as error:  # a bare one, where a busy machine starts it too slowly
        what = f"there is no Ray cluster at {address}" if address else "Ray does not start on this machine"
        raise UserError(f"{what}: {' '.join(str(error).split())[:200]}") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _everywhere(job: Job) -> Job:
    """The job with whole paths: workers have another current folder."""
    weights, place = Path(job.weights).expanduser(), as_location(job.source)
    return replace(
        job,
        weights=weights.absolute() if is_own(weights) else job.weights,
        source=place if isinstance(place, str) else place.expanduser().absolute(),
        out=job.out.absolute(),
    )
