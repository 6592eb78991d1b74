"""The training loop: batches in, gradients, one optimizer step; one validation per epoch.

Every random draw is a function of (seed, step, rank). A run that is killed and resumed therefore repeats the
uninterrupted one exactly, and its saved state holds no random state.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boxwright.checkpoints.detector_file import save_detector
from boxwright.checkpoints.header import read_header
from boxwright.checkpoints.lora import is_adapted
from boxwright.checkpoints.tensors import save_tensors
from boxwright.config import UserError, require
from boxwright.data.loader import BatchSource, mix, steps_per_epoch, train_batches
from boxwright.data.records import Record
from boxwright.device import device_name
from boxwright.explanation.validation_pictures import write_validation_pictures
from boxwright.files import write_whole
from boxwright.models.losses.normaliser import given_normalisers, joint_normalisers, recorded_counts
from boxwright.training.config import RunConfig
from boxwright.training.duration import StepTimer, announce, estimate_validation
from boxwright.training.fabric import Fabric
from boxwright.training.identity import RunIdentity
from boxwright.training.interrupt import Interrupt
from boxwright.training.optim import make_optimizer, moving_average, rate_factor, set_rate
from boxwright.training.run_logger import RunLogger
from boxwright.training.state import Progress, read_state, restore, save_state
from boxwright.training.teacher import Teacher
from boxwright.training.validation import validate_on_all_devices
from boxwright.types import Batch, Detector

BEST, LAST = "best.safetensors", "last.safetensors"
SAVE_SECONDS = 600  # a state is written at least this often, besides each epoch's end


class TrainStep(nn.Module):
    """Images to losses in one forward, so that distributed wrappers see the whole computation."""

    def __init__(self, detector: Detector, teacher: Teacher | None = None):
        super().__init__()
        self.detector, self.teacher = detector, teacher

    def forward(self, get_batch: Callable[[], Batch]) -> dict[str, Tensor]:
        """Named losses of the batch that `get_batch` returns; in a batch passed as it is, Fabric would round the boxes
        to bf16.
        """
        batch = get_batch()
        if self.teacher is not None:
            return self.teacher.losses(self.detector, batch)
        outputs = self.detector(batch.images_BCHW, batch.sizes_B2, batch)
        return dict(self.detector.loss(outputs, batch))


class Loop:
    """One run of training, from its first step or from where it was interrupted.

    Args:
        fabric: launched, with device and precision decided.
        detector: fresh, or loaded from a checkpoint to fine-tune.
        config: the settings, as `resolve` returns them.
        train: cached training images.
        val: cached validation images and their records.
        card: facts to store with the weights.
        identity: settings and data, which must be the same when the run is resumed; None for a run that never is.
        teacher: adds its losses to those of the annotated objects.
        resume: continue from the state in the run's folder.

    Attributes:
        adjusted: the settings with which it goes on instead of those that it was begun with, as options.

    Raises:
        UserError: if there is no state to resume from, or it is that of another run.
    """

    def __init__(
        self,
        fabric: Fabric,
        detector: Detector,
        config: RunConfig,
        train: BatchSource,
        val: tuple[BatchSource, Sequence[Record]],
        card: dict[str, Any] | None = None,
        identity: RunIdentity | None = None,
        teacher: Teacher | None = None,
        resume: bool = False,
    ):
        self.fabric, self.config, self.train, self.val, self.card = fabric, config, train, val, card or {}
        assert config.epochs is not None
        assert config.batch_size is not None
        assert config.augment.views is not None
        self.batch_size = config.batch_size
        batches = steps_per_epoch(len(train), config.batch_size, fabric.world_size, config.augment.views)
        self.accumulate = min(config.optim.accumulate or 1, batches)
        self.epoch_steps = batches // self.accumulate
        self.total = config.epochs * self.epoch_steps
        self.detector = detector.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(self.detector, config.optim)
        self.backbone = [p for p in self.detector.backbone_parameters() if p.requires_grad]
        alone = fabric.world_size == 1 or not config.optim.frozen
        require(alone, "--optim.frozen works on one device; leave it at 0 on several.")  # DDP wants all gradients
        self.average = moving_average(self.detector, config.optim.ema) if config.optim.ema else None
        self.progress = Progress(teacher=teacher.checksum if teacher else "")
        self.adjusted: list[str] = []
        if resume:
            assert identity is not None
            self._resume(optimizer, identity)
        if identity is not None:
            recipe, adjustable, data = identity.recipe, identity.adjustable, identity.data
            self.progress = replace(self.progress, recipe=recipe, adjustable=adjustable, data=data)
        self.model, self.optimizer = fabric.setup(TrainStep(self.detector, teacher), optimizer)
        self.saved_at = time.monotonic()
        self.timer: StepTimer | None = StepTimer()  # until it is printed how long the run will take

    def _resume(self, optimizer: torch.optim.Optimizer, identity: RunIdentity) -> None:
        progress, tensors = read_state(self.config.out, self.progress.teacher or "")
        self.adjusted = identity.adjust(progress, self.config, self.epoch_steps, is_adapted(self.detector))
        restore(self.config.out, tensors, self.detector, self.average, optimizer)
        self.progress = progress

    def run(self) -> Progress:
        """Train to the end, or until interrupted; in both cases, the state is saved, and the run can be resumed.

        Raises:
            UserError: if the loss stops being finite, or a checkpoint can't be written.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
        """
        logger = RunLogger(self.config.out, self.total, self.progress.step, self.fabric.is_global_zero)
        with logger, Interrupt() as interrupt:
            if self._lacks_validation():
                self._finish_epoch(self.progress.step // self.epoch_steps, logger)
            while self.progress.step < self.total and not self._out_of_patience():
                self._epoch(logger, interrupt)
        return self.progress

    def measure_time(self, least: int, most: int, seconds: float) -> tuple[float, float]:
        """Measure how long the run will take: median seconds of a step, and the seconds of all that ends an epoch.

        Leaves an unfinished run in the folder.

        Args:
            least, most: steps to time; no more than an epoch.
            seconds: stop after these, once `least` steps are done.
        """
        timer, end_seconds = StepTimer(least, most, seconds), []
        batches = self._batches(0, 0)
        self.model.train()
        with RunLogger(self.config.out, self.total, 0, active=True) as logger:
            for step in range(1, self.epoch_steps + 1):
                started = time.perf_counter()
                losses = self._step(batches)
                timer.add(time.perf_counter() - started)
                logger.step(step, step / self.epoch_steps, 0.0, losses, 0.0)
                if timer.enough:
                    break
            while sum(end_seconds) < seconds and len(end_seconds) < 2:  # a quick first one is mostly imports
                started, self.progress.best_epoch = time.perf_counter(), 0  # an epoch with a better AP writes most
                self._finish_epoch(1, logger)
                end_seconds.append(time.perf_counter() - started)
        return timer.step_seconds, end_seconds[-1]

    def _epoch(self, logger: RunLogger, interrupt: Interrupt) -> None:
        epoch, first = divmod(self.progress.step, self.epoch_steps)
        self.model.train()
        batches = self._batches(epoch, first * self.accumulate)
        for _ in range(first, self.epoch_steps):
            started = time.perf_counter()
            losses = self._step(batches)
            self.progress.step += 1
            seconds = time.perf_counter() - started
            rate = self.batch_size * self.accumulate * self.fabric.world_size / seconds
            lr = self.optimizer.param_groups[-1]["lr"]
            logger.step(self.progress.step, self.progress.step / self.epoch_steps, lr, losses, rate)
            if interrupt.requested or time.monotonic() - self.saved_at > SAVE_SECONDS:
                self._save_state()
            if interrupt.requested:
                raise interrupt.error()
            self._predict_duration(logger, seconds)
        self._finish_epoch(epoch + 1, logger)

    def _predict_duration(self, logger: RunLogger, seconds: float) -> None:
        """Once enough steps are timed, or an epoch is about to end, say how long the rest of the run will take.

        Args:
            logger: to say it.
            seconds: of the step just done.
        """
        if self.timer is None or not logger.active:
            return
        self.timer.add(seconds)
        step, steps = self.progress.step, self.total - self.progress.step
        if not steps or not (self.timer.enough or step % self.epoch_steps == 0):
            return
        fabric, world = self.fabric, self.fabric.world_size
        validation = estimate_validation(self._averaged, self.val[0], self.batch_size, fabric.device, world)
        epochs = self.total // self.epoch_steps
        left = steps * self.timer.step_seconds + (epochs - (step - 1) // self.epoch_steps) * validation
        machine = (f"{world} x " if world > 1 else "") + device_name(fabric.device.type)
        sure = not self.config.optim.patience
        logger.duration(step, left, f"{epochs} epochs of {self.epoch_steps} steps: {announce(left, machine, sure)}")
        self.timer = None

    @property
    def _averaged(self) -> Detector:
        """The weights that will be used: the average, if there is one."""
        return self.detector if self.average is None else self.average.module  # type: ignore[return-value]

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        fabric, config = self.fabric, self.config
        return train_batches(
            self.train, self.batch_size, config.augment, seed=config.seed, epoch=epoch,
            epochs=config.epochs, first=first, rank=fabric.global_rank, world=fabric.world_size, device=fabric.device,
        )  # fmt: skip

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step over `accumulate` batches; the losses are their mean."""
        set_rate(self.optimizer, rate_factor(self.progress.step, self.total, self.config.optim))
        self._freeze_backbone(self.progress.step < (self.config.optim.frozen or 0) * self.total)
        parts = list(islice(batches, self.accumulate))
        with self._joint_normalisers(parts):
            sums = self._add_gradients(parts)
        if self.config.optim.clip:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.detector)
        return sums

    def _losses(self, batch: Batch, part: int) -> dict[str, Tensor]:
        """The losses of a part of a step, with random numbers of its own."""
        number = self.progress.step * self.accumulate + part
        torch.manual_seed(mix(self.config.seed, number, self.fabric.global_rank))
        return self.model(lambda: batch)

    def _joint_normalisers(self, parts: Sequence[Batch]) -> AbstractContextManager[None]:
        """Where gradients are added up, losses are divided by what the whole batch would have been divided by.

        It is known only after a forward pass of all parts, as it may depend on the predictions.
        """
        if len(parts) == 1:
            return nullcontext()
        buffers = {name: value.clone() for name, value in self.detector.named_buffers()}
        counts = []
        for part, batch in enumerate(parts):
            with torch.no_grad(), recorded_counts() as own:
                self._losses(batch, part)
            counts.append(own)
        for name, value in self.detector.named_buffers():
            value.copy_(buffers[name])
        return given_normalisers(joint_normalisers(counts), len(parts))

    def _add_gradients(self, parts: Sequence[Batch]) -> dict[str, float]:
        """Add up the gradients of all parts; the means of their losses."""
        sums: dict[str, float] = {}
        for part, batch in enumerate(parts):
            with self.fabric.no_backward_sync(self.model, enabled=part + 1 < len(parts)):
                losses = self._losses(batch, part)
                values = torch.stack([value.detach() for value in losses.values()]).tolist()
                self._require_finite(dict(zip(losses, values, strict=True)), batch)
                self.fabric.backward(torch.stack(list(losses.values())).sum() / len(parts))
            for name, value in zip(losses, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value / len(parts)
        return sums

    def _freeze_backbone(self, frozen: bool) -> None:
        """While frozen, it gets no gradients, no decay and no moments; these begin with its first step."""
        for parameter in self.backbone:
            parameter.requires_grad_(not frozen)

    def _require_finite(self, losses: dict[str, float], batch: Batch) -> None:
        wrong = {name: value for name, value in losses.items() if value - value != 0}
        if wrong:
            assert self.config.optim.lr is not None
            step = self.progress.step + 1
            file = self.config.out / f"not-finite-step-{step}.safetensors"
            tensors = {name: value.contiguous() for name, value in vars(batch).items()}
            write_whole(file, lambda temporary: save_tensors(tensors, temporary))
            raise UserError(
                f"the loss is not finite at step {step} ({wrong}); the batch is in {file}. "
                f"Give the same command with --resume and --optim.lr {self.config.optim.lr / 3:.2g}, or with --resume "
                "and --optim.clip 1 or --precision 32-true: it goes on from the last state."
            )

    def _lacks_validation(self) -> bool:
        """Whether a run is resumed where an epoch ended, but not all that follows was written: last comes last."""
        epoch, steps = divmod(self.progress.step, self.epoch_steps)
        return epoch > 0 and steps == 0 and _epoch_of(self.config.out / LAST) != epoch

    def _finish_epoch(self, epoch: int, logger: RunLogger) -> None:
        """Validate the weights that will be used; save the state, then best and last.

        Where the process is killed in between, the resumed one does it again, with the same result.
        """
        detector = self._averaged
        self.model.eval()
        card = self.card | {"epoch": epoch}
        started = time.perf_counter()
        settings = self.batch_size, self.config.seed
        numbers, report, found = validate_on_all_devices(self.fabric, detector, *self.val, *settings)
        ap = numbers["val_ap"]
        card |= {name: round(numbers[name], 4) for name in ("val_ap", "val_ap50")}
        logger.validation(self.progress.step, epoch, numbers, time.perf_counter() - started)
        better = self.progress.best_epoch in (0, epoch) or ap > self.progress.best_ap
        if better:
            self.progress.best_ap, self.progress.best_epoch = ap, epoch
        self._save_state()
        if self.fabric.is_global_zero:
            if (thresholds := report.thresholds.choose(_validated_on(self.config, len(self.val[1])))) is not None:
                card |= thresholds.to_card()
            if better:
                save_detector(self.config.out / BEST, detector, card)
                write_validation_pictures(detector, *self.val, found, self.config.out)
            save_detector(self.config.out / LAST, detector, card)

    def _out_of_patience(self) -> bool:
        """Whether `patience` epochs have passed without a better AP."""
        patience, done = self.config.optim.patience, self.progress.step // self.epoch_steps
        return bool(patience and done - self.progress.best_epoch >= patience)

    def _save_state(self) -> None:
        if self.fabric.is_global_zero:
            save_state(self.config.out, self.progress, self.detector, self.average, self.optimizer)
        self.saved_at = time.monotonic()
        self.fabric.barrier()


def _epoch_of(weights: Path) -> int | None:
    """The epoch after which a checkpoint was written; None if there is none that can be read."""
    try:
        return json.loads(read_header(weights)["card"])["epoch"]
    except (UserError, ValueError, TypeError, KeyError):
        return None


def _validated_on(config: RunConfig, images: int) -> str:
    """The validation images, in words."""
    split = f", split {config.val_split}" if config.val_split else ""
    return f"{images} validation images of {Path(config.val_data or config.data).name}{split}"
