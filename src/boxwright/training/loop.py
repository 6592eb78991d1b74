"""The training loop, in the open: batches in, gradients, one step, one validation an epoch.

Every random draw is a function of (seed, step, rank). A run that is killed and resumed therefore repeats the
uninterrupted one exactly, and a state holds no random state.
"""

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from boxwright.checkpoints.detector_file import save_detector
from boxwright.checkpoints.lora import is_adapted
from boxwright.checkpoints.tensors import save_tensors
from boxwright.config import UserError, require
from boxwright.data.cache import Cache
from boxwright.data.loader import mix, steps_per_epoch, train_batches
from boxwright.data.records import Record
from boxwright.evaluation.coco import STAT_NAMES, Report, score
from boxwright.evaluation.run import Validation, validate
from boxwright.explanation.validation_pictures import write_validation_pictures
from boxwright.files import write_whole
from boxwright.training.checkpoint import Progress, read_state, restore, save_state
from boxwright.training.config import RunConfig, begun_otherwise
from boxwright.training.fabric import Fabric
from boxwright.training.optim import make_optimizer, moving_average, rate_factor, set_rate
from boxwright.training.teacher import Teacher
from boxwright.training.watch import RunLogger
from boxwright.types import Batch, Detections, Detector

SAVE_SECONDS = 600  # a state is written at least this often, besides each epoch's end


class TrainStep(nn.Module):
    """Images to losses in one forward, so that distributed wrappers see the whole computation."""

    def __init__(self, detector: Detector, teacher: Teacher | None = None):
        super().__init__()
        self.detector, self.teacher = detector, teacher

    def forward(self, given: Callable[[], Batch]) -> dict[str, Tensor]:
        """Named losses of the batch that `given` gives: of one in sight, Fabric would round the boxes to bf16."""
        batch = given()
        if self.teacher is not None:
            return self.teacher.losses(self.detector, batch)
        return dict(self.detector.loss(self.detector(batch.images_BCHW, batch.sizes_B2, batch), batch))


class Loop:
    """One run of training, from its first step or from where it was interrupted.

    Args:
        fabric: launched, with device and precision decided.
        detector: fresh, or loaded from a checkpoint to fine-tune.
        config: the settings, none of them open.
        train: cached training images.
        val: cached validation images and their records.
        card: facts to store with the weights.
        digest: of the settings and data that must be the same when the run is resumed.
        teacher: what else there is to learn from.
        resume: continue from the state in the run's folder.

    Raises:
        UserError: if there is no state to resume from, or it is that of another run.
    """

    def __init__(
        self,
        fabric: Fabric,
        detector: Detector,
        config: RunConfig,
        train: Cache,
        val: tuple[Cache, Sequence[Record]],
        card: dict[str, Any] | None = None,
        digest: str = "",
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
        self.progress = Progress(recipe=digest, teacher=teacher.checksum if teacher else "")
        if resume:
            self._resume(optimizer)
        self.model, self.optimizer = fabric.setup(TrainStep(self.detector, teacher), optimizer)
        self.saved_at = time.monotonic()

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        begun, tensors = read_state(self.config.out, self.progress.teacher or "")
        if begun.recipe != self.progress.recipe:
            raise UserError(begun_otherwise(self.config, is_adapted(self.detector)))
        restore(self.config.out, tensors, self.detector, self.average, optimizer)
        self.progress = begun

    def run(self) -> Progress:
        """Train to the end, or until interrupted; leaves a state to resume from in both cases.

        Raises:
            UserError: if the loss stops being finite, or a checkpoint can't be written.
            KeyboardInterrupt: after Ctrl-C or a polite kill, once the state is saved.
        """
        watch = RunLogger(self.config.out, self.total, self.progress.step, self.fabric.is_global_zero)
        with watch, _Interrupt() as interrupt:
            while self.progress.step < self.total and not self._stale():
                self._epoch(watch, interrupt)
        return self.progress

    def rehearse(self, least: int, most: int, seconds: float) -> tuple[float, float]:
        """How long the run will take: median seconds of a step, and the seconds of all that ends an epoch.

        Goes on for `seconds`, but `least` to `most` steps, or an epoch. Leaves an untidy run in the plan's folder.
        """
        begun, taken, ends = time.perf_counter(), [], []
        batches = self._batches(0, 0)
        self.model.train()
        with RunLogger(self.config.out, self.total, 0, active=True) as watch:
            for step in range(1, min(most, self.epoch_steps) + 1):
                started = time.perf_counter()
                losses = self._step(batches)
                taken.append(time.perf_counter() - started)
                watch.step(step, step / self.epoch_steps, 0.0, losses, 0.0)
                if step >= least and time.perf_counter() - begun > seconds:
                    break
            while sum(ends) < seconds and len(ends) < 2:  # a first one that is quick is mostly imports
                started, self.progress.best_epoch = time.perf_counter(), 0  # the better epochs write most
                self._finish_epoch(1, watch)
                ends.append(time.perf_counter() - started)
        return statistics.median(taken[2:] or taken), ends[-1]

    def _epoch(self, watch: RunLogger, interrupt: "_Interrupt") -> None:
        epoch, first = divmod(self.progress.step, self.epoch_steps)
        self.model.train()
        batches = self._batches(epoch, first * self.accumulate)
        for _ in range(first, self.epoch_steps):
            started = time.perf_counter()
            losses = self._step(batches)
            self.progress.step += 1
            rate = self.batch_size * self.accumulate * self.fabric.world_size / (time.perf_counter() - started)
            lr = self.optimizer.param_groups[-1]["lr"]
            watch.step(self.progress.step, self.progress.step / self.epoch_steps, lr, losses, rate)
            if interrupt.asked or time.monotonic() - self.saved_at > SAVE_SECONDS:
                self._save_state()
            if interrupt.asked:
                raise KeyboardInterrupt
        self._finish_epoch(epoch + 1, watch)

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        fabric, config = self.fabric, self.config
        return train_batches(
            self.train, self.batch_size, config.augment, seed=config.seed, epoch=epoch, first=first,
            rank=fabric.global_rank, world=fabric.world_size, device=fabric.device,
        )  # fmt: skip

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step over `accumulate` batches; the losses are their mean."""
        set_rate(self.optimizer, rate_factor(self.progress.step, self.total, self.config.optim))
        self._let_backbone_learn(self.progress.step >= (self.config.optim.frozen or 0) * self.total)
        sums: dict[str, float] = {}
        for part in range(self.accumulate):
            batch = next(batches)
            draw = self.progress.step * self.accumulate + part
            torch.manual_seed(mix(self.config.seed, draw, self.fabric.global_rank))
            with self.fabric.no_backward_sync(self.model, enabled=part + 1 < self.accumulate):
                losses = self.model(lambda batch=batch: batch)
                values = torch.stack([value.detach() for value in losses.values()]).tolist()
                self._require_finite(dict(zip(losses, values, strict=True)), batch)
                self.fabric.backward(torch.stack(list(losses.values())).sum() / self.accumulate)
            for name, value in zip(losses, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value / self.accumulate
        if self.config.optim.clip:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.detector)
        return sums

    def _let_backbone_learn(self, learns: bool) -> None:
        """Or not: then it gets no gradients, no decay and no moments, which begin with its first step."""
        for parameter in self.backbone:
            parameter.requires_grad_(learns)

    def _require_finite(self, losses: dict[str, float], batch: Batch) -> None:
        wrong = {name: value for name, value in losses.items() if value - value != 0}
        if wrong:
            step = self.progress.step + 1
            file = self.config.out / f"not-finite-step-{step}.safetensors"
            tensors = {name: value.contiguous() for name, value in vars(batch).items()}
            write_whole(file, lambda temporary: save_tensors(tensors, temporary))
            raise UserError(
                f"the loss is not finite at step {step} ({wrong}); the batch is in {file}. "
                "Try a lower --optim.lr, --optim.clip 1 or --precision 32-true; --resume goes on from the last state."
            )

    def _finish_epoch(self, epoch: int, watch: RunLogger) -> None:
        """Validate what will be shipped, keep the last and the best, then the state."""
        shipped: Detector = self.average.module if self.average is not None else self.detector  # type: ignore[assignment]
        self.model.eval()
        card = self.card | {"epoch": epoch}
        started = time.perf_counter()
        numbers, found = self._validate(shipped, *self.val)
        ap = numbers["val_ap"]
        card |= {name: round(numbers[name], 4) for name in ("val_ap", "val_ap50")}
        watch.validation(self.progress.step, epoch, numbers, time.perf_counter() - started)
        better = not self.progress.best_epoch or ap > self.progress.best_ap
        if better:
            self.progress.best_ap, self.progress.best_epoch = ap, epoch
        if self.fabric.is_global_zero:
            save_detector(self.config.out / "last.safetensors", shipped, card)
            if better:
                save_detector(self.config.out / "best.safetensors", shipped, card)
                write_validation_pictures(shipped, *self.val, found, self.config.out)
        self._save_state()

    def _validate(
        self, detector: Detector, cache: Cache, records: Sequence[Record]
    ) -> tuple[dict[str, float], list[Detections]]:
        """The numbers of a validation, as metrics.csv has them, and all detections.

        They are the same on every device: each detects on its share of the images. Random draws of a loss are the same
        at each validation.
        """
        fabric = self.fabric
        torch.manual_seed(self.config.seed)
        share = validate(detector, cache, self.batch_size, fabric.device, fabric.global_rank, fabric.world_size)
        shares: list[Any] = [share]
        if fabric.world_size > 1:
            shares = [None] * fabric.world_size
            torch.distributed.all_gather_object(shares, share)
        dealt = _even([share.detections for share in shares])
        found = [detections for turn in zip(*dealt, strict=True) for detections in turn][: len(cache)]
        return _numbers(score(records, found, detector.names), shares), found

    def _stale(self) -> bool:
        """Whether `patience` epochs have passed without a better AP."""
        patience, done = self.config.optim.patience, self.progress.step // self.epoch_steps
        return bool(patience and done - self.progress.best_epoch >= patience)

    def _save_state(self) -> None:
        if self.fabric.is_global_zero:
            save_state(self.config.out, self.progress, self.detector, self.average, self.optimizer)
        self.saved_at = time.monotonic()
        self.fabric.barrier()


def _numbers(report: Report, shares: Sequence[Validation]) -> dict[str, float]:
    """AP, also by size where there are objects of it; each loss, the mean over all images; and, of detectors that say
    objects in words, the true sentences' mean log-likelihood a word.
    """
    stats = dict(zip(STAT_NAMES, report.stats, strict=True))
    numbers = {"val_ap": report.ap, "val_ap50": report.ap50}
    sizes = {"small": "APs", "medium": "APm", "large": "APl"}
    numbers |= {f"val_ap_{size}": stats[name] for size, name in sizes.items() if stats[name] >= 0}
    images = sum(len(share.detections) for share in shares)
    losses = {name: sum(share.losses.get(name, 0.0) for share in shares) / images for name in shares[0].losses}
    numbers |= {"val_loss": sum(losses.values())} | {f"val_loss_{name}": value for name, value in losses.items()}
    tokens = sum(share.tokens for share in shares)
    if tokens:
        numbers["val_log_likelihood"] = sum(share.likelihood for share in shares) / tokens
    return numbers


def _even(shares: list[list[Any]]) -> list[list[Any]]:
    """Shares of images dealt out in turn, filled up to equal length."""
    longest = max(len(share) for share in shares)
    return [share + [None] * (longest - len(share)) for share in shares]


class _Interrupt:
    """Turns Ctrl-C and SIGTERM into a wish that the loop honours between two steps; a second one kills at once.

    Only the main thread hears signals; in another one nothing changes.
    """

    asked = False

    def __enter__(self) -> "_Interrupt":
        heard = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
        self.before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.__exit__()

    def __exit__(self, *ignored: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
