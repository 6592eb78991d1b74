"""The time to generate 100 objects, compared with the ways in which others do it; and the cost of each choice.

    python benchmarks/decoding.py [--write]
    python benchmarks/decoding.py --cuda [--write]

The decoder is that of the ResNet-50 recipe (6 layers of 256, 8 heads, vocabulary 3000) with random weights. It attends
to the 400 cells of a 640 px image. The other ways are implemented here, on the same weights, under the same token
constraints:

    whole prefix      no cache: each step computes the whole sequence, as in Stable-Pix2Seq and the tutorials
    grown cache       keys and values of the sequence grow by concatenation, those of the image are computed at each
                      step, as in Pretrained-Pix2Seq
    official          the layers' inputs are cached; all keys and values, of sequence and image, are computed at each
                      step

Each of their steps costs more than the one before, so it is timed at positions spread evenly over the sequence, where
it must choose the same token as ours; the time of the sequence is the mean times the number of steps. Times on the CPU
are CPU times of one thread, the least of several runs in a row, so that other work on the machine matters little.
"""

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from boxwright.models.layers.attention import DecoderBlock
from boxwright.models.layers.kv_cache import KeysValues
from boxwright.models.sequence.decoder import SequenceDecoder
from boxwright.models.sequence.generate import generate
from boxwright.models.sequence.generation import Generation
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import Vocabulary

OBJECTS, SLOTS, CELLS, DIM = 100, 5, 400, 256
RESULT = Path(__file__).parent / "results" / "decoding.md"


def make(device: str = "cpu", dtype: torch.dtype = torch.float32, objects: int = OBJECTS) -> SequenceDecoder:
    """The decoder; its embeddings are larger than at the start of training, so that no two tokens are close."""
    torch.manual_seed(0)
    decoder = SequenceDecoder(3000, objects * SLOTS + 12, SLOTS, 6, DIM, 1024, 8, 0.0, 0.0).eval()
    for table in (decoder.token_embedding, decoder.position_embedding):
        torch.nn.init.normal_(table, std=0.3)
    return decoder.to(device, dtype).requires_grad_(False)


def encoded_images(batch: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, CELLS, DIM, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def constraints(device: str = "cpu", free: bool = False) -> TokenConstraints:
    return Vocabulary().token_constraints(80, free=free, device=device)


# -- the other ways ------------------------------------------------------------------------------------------------


class WholePrefix:
    """No cache."""

    def __init__(self, decoder: SequenceDecoder, memory_BME: Tensor, prefix_BL: Tensor):
        self.decoder, self.memory_BME, self.prefix_BL = decoder, memory_BME, prefix_BL

    def step(self) -> Tensor:
        return self.decoder(self.prefix_BL, self.memory_BME)[:, -1]


class Cached:
    """A cache of the tokens before the last one, computed outside the timed part."""

    def __init__(self, decoder: SequenceDecoder, memory_BME: Tensor, prefix_BL: Tensor):
        self.decoder, self.memory_BME = decoder, memory_BME
        self.cached = []
        x_BLE = self.embed(prefix_BL, slice(0, prefix_BL.shape[1]))
        self.last_B1E, x_BLE = x_BLE[:, -1:], x_BLE[:, :-1]
        for layer in decoder.layers:
            self.cached.append(self.cache(layer, layer.self_norm(x_BLE)))
            x_BLE = layer(x_BLE, layer.cross_attention.keys_values(memory_BME)) if x_BLE.shape[1] else x_BLE

    def embed(self, tokens_BL: Tensor, positions: slice) -> Tensor:
        return self.decoder.token_embedding[tokens_BL] + self.decoder.position_embedding[positions]

    def step(self) -> Tensor:
        x_B1E = self.last_B1E
        for layer, cached in zip(self.decoder.layers, self.cached, strict=True):
            sequence = self.extended(layer, cached, layer.self_norm(x_B1E))
            x_B1E = x_B1E + layer.self_attention(layer.self_norm(x_B1E), sequence)
            image = layer.cross_attention.keys_values(self.memory_BME)
            x_B1E = layer.mlp(x_B1E + layer.cross_attention(layer.cross_norm(x_B1E), image))
        return self.decoder._logits(x_B1E[:, -1])


class GrownCache(Cached):
    """Keys and values of the sequence grow by concatenation; those of the image are computed again."""

    def cache(self, layer: DecoderBlock, normed_BLE: Tensor) -> KeysValues:
        return layer.self_attention.keys_values(normed_BLE)

    def extended(self, layer: DecoderBlock, cached: KeysValues, normed_B1E: Tensor) -> KeysValues:
        new = layer.self_attention.keys_values(normed_B1E)
        return KeysValues(*(torch.cat(pair, 2) for pair in zip(cached, new, strict=True)))


class Official(Cached):
    """The layers' normed inputs are cached; all keys and values are computed again."""

    def cache(self, layer: DecoderBlock, normed_BLE: Tensor) -> Tensor:
        return normed_BLE

    def extended(self, layer: DecoderBlock, cached: Tensor, normed_B1E: Tensor) -> KeysValues:
        return layer.self_attention.keys_values(torch.cat([cached, normed_B1E], 1))


# -- measuring -----------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object], times: int = 1) -> float:
    """The least of several runs: wall time on a GPU, else CPU time."""
    clock, taken = time.perf_counter if torch.cuda.is_available() else time.process_time, []
    for _ in range(times):
        started = clock()
        function()
        taken.append(clock() - started)
    return min(taken)


def other_way(
    kind: type, decoder: SequenceDecoder, memory_BME: Tensor, allowed: TokenConstraints, tokens_BL: Tensor
) -> float:
    """Seconds for a whole sequence, from steps at ten positions; each must choose our token."""
    prefix_BL = torch.nn.functional.pad(tokens_BL, (1, 0), value=allowed.start)
    taken = []
    for position in range(25, tokens_BL.shape[1], 50):
        way = kind(decoder, memory_BME, prefix_BL[:, : position + 1])
        taken.append(seconds(way.step, 4))
        allowed_BV = way.step().masked_fill(~allowed.allowed_PV[position % SLOTS], -torch.inf)
        low = allowed.at_least[position % SLOTS]
        if low is not None:
            least_B1 = prefix_BL[:, position + 1 - position % SLOTS + low][:, None]
            allowed_BV = allowed_BV.masked_fill(torch.arange(allowed_BV.shape[1]) < least_B1, -torch.inf)
        assert (allowed_BV.argmax(-1) == tokens_BL[:, position]).all(), f"{kind.__name__} differs at {position}"
    return statistics.mean(taken) * tokens_BL.shape[1]


def against_others(batch: int) -> list[str]:
    decoder, memory, allowed = make(), encoded_images(batch), constraints()
    tokens_BL = generate(decoder, memory, allowed, OBJECTS).tokens_BL
    ours = seconds(lambda: generate(decoder, memory, allowed, OBJECTS), 2)
    rows = [f"| {batch} | boxwright | {ours:.2f} | 1.0 x |"]
    for name, kind in (("whole prefix", WholePrefix), ("grown cache", GrownCache), ("official", Official)):
        theirs = other_way(kind, decoder, memory, allowed, tokens_BL)
        rows.append(f"| {batch} | {name} | {theirs:.2f} | {theirs / ours:.1f} x |")
    return rows


def in_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each side: the least of several runs, in turns, so that a busy machine treats all alike."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(seconds(side))
    return {name: min(values) for name, values in taken.items()}


def choices() -> list[str]:
    """The cost of token constraints, samplers and beams for a sequence of 6 objects."""
    decoder, memory, rows = make(), encoded_images(1), []
    ways = {
        "unconstrained, greedy": (constraints(free=True), Sampling()),
        "constrained, greedy": (constraints(), Sampling()),
        "constrained, no repeats": (constraints(), Sampling(repeats=False)),
        "constrained, all drawn": (constraints(), Sampling(1.0)),
        "constrained, top-k 50": (constraints(), Sampling(1.0, top_k=50)),
        "constrained, official nucleus .4": (constraints(), Sampling(0.4)),
        "constrained, standard nucleus .4": (constraints(), Sampling(0.4, "standard")),
        "constrained, 2 beams": (constraints(), Sampling(beams=2)),
        "constrained, 3 beams": (constraints(), Sampling(beams=3)),
    }
    sides = {
        name: lambda allowed=allowed, sampling=sampling: generate(decoder, memory, allowed, 6, sampling)
        for name, (allowed, sampling) in ways.items()
    }
    taken = in_turns(sides, 20)
    unconstrained = taken["unconstrained, greedy"]
    for name, value in taken.items():
        mean = sides[name]().log_probs_BL.mean()
        rows.append(f"| {name} | {value * 1e3:.1f} | {value / unconstrained - 1:+.1%} | {mean:.3f} |")
    return rows


def stopping() -> list[str]:
    """Time by the number of tokens: sequences of up to 100 objects that end earlier."""
    decoder, memory, allowed, rows = make(), encoded_images(1), constraints(), []

    class Ending:
        """The decoder, whose end token becomes certain after some objects."""

        def __init__(self, objects: int):
            self.last = objects * SLOTS

        def start(self, *arguments):
            return decoder.start(*arguments)

        def step(self, tokens_BL, positions_L, cache, slot):
            scores_BV = decoder.step(tokens_BL, positions_L, cache, slot)
            scores_BV[:, allowed.end] += torch.where(positions_L[-1] < self.last, -100.0, 1000.0)
            return scores_BV

    counts = (5, 12, 25, 50, 100)
    sides = {str(n): lambda n=n: generate(Ending(n), memory, allowed, 100, Sampling(end_bias=0.0)) for n in counts}
    taken = in_turns(sides, 3)
    for name, value in taken.items():
        tokens = int(name) * SLOTS + (int(name) < 100)
        rows.append(f"| {name} | {tokens} | {value:.3f} | {value / tokens * 1e3:.2f} |")
    return rows


def memory() -> list[str]:
    """The peak memory of a process of its own, 500 tokens, and the size of the caches in it."""
    rows = []
    for batch in (1, 32):
        command = [sys.executable, __file__, "--memory", str(batch)]
        used, caches = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        rows.append(f"| {batch} | {caches:.0f} | {used:.0f} | {used - caches:.0f} |")
    return rows


def memory_of(batch: int) -> None:
    """Print MiB: the growth of this process after a short sequence, and its caches (Linux)."""
    decoder, allowed = make(), constraints()
    generate(decoder, encoded_images(1), allowed, 1)
    memory_BME = encoded_images(batch)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    generation = Generation(decoder, memory_BME, allowed, OBJECTS, Sampling())
    with torch.inference_mode():
        for number in range(OBJECTS):
            generation.generate_object(number)
    tensors = [t for layer in (*generation.cache.sequence, *generation.cache.image) for t in layer]
    print(status("VmHWM") - before, sum(t.numel() * t.element_size() for t in tensors) / 2**20)


def status(name: str) -> float:
    """MiB of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


# -- on a GPU ------------------------------------------------------------------------------------------------------


class Recorded:
    """Generation of one object, recorded as a CUDA graph once per bucket, and replayed for each object."""

    def __init__(self, decoder: SequenceDecoder, memory_BME: Tensor, allowed: TokenConstraints):
        self.generation = Generation(decoder, memory_BME, allowed, OBJECTS, Sampling())
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self.generation.generate_object(0)
        torch.cuda.synchronize()
        for number in range(OBJECTS):
            bucket = self.generation.bucket(number)
            if bucket not in self.graphs:
                self.graphs[bucket] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graphs[bucket]):
                    self.generation.generate_object(number)

    def generate(self) -> Tensor:
        self.generation.position_1.zero_()
        for number in range(OBJECTS):
            self.graphs[self.generation.bucket(number)].replay()
        torch.cuda.synchronize()
        return self.generation.tokens_BL[:, 1:].clone()


@torch.inference_mode()
def on_gpu() -> list[str]:
    """Milliseconds per sequence and tokens per second, and the bound of reading weights and caches once per token."""
    decoder, allowed, rows = make("cuda", torch.bfloat16), constraints("cuda"), []
    bandwidth = copy_bandwidth()
    for batch in (1, 32):
        memory_BME = encoded_images(batch, "cuda", torch.bfloat16)
        eager = generate(decoder, memory_BME, allowed, OBJECTS).tokens_BL
        eager_seconds = seconds(
            lambda memory_BME=memory_BME: generate(decoder, memory_BME, allowed, OBJECTS).tokens_BL.cpu(), 3
        )
        recorded = Recorded(decoder, memory_BME, allowed)
        same = (recorded.generate() == eager).float().mean()
        taken = seconds(recorded.generate, 10)
        weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
        caches = [t for layer in (*recorded.generation.cache.sequence, *recorded.generation.cache.image) for t in layer]
        read = weights + sum(t.numel() * t.element_size() for t in caches[: len(caches) // 2]) / 2
        read += sum(t.numel() * t.element_size() for t in caches[len(caches) // 2 :])
        bound = read / bandwidth
        step = taken / (OBJECTS * SLOTS)
        rows.append(
            f"| {batch} | {eager_seconds * 1e3:.0f} | {taken * 1e3:.1f} | {batch / step:,.0f} | {batch / bound:,.0f} | "
            f"{bound / step:.2f} | {same:.1%} |"
        )
    return rows


def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * source.numel() / seconds(copy, 10)


# -- reporting -----------------------------------------------------------------------------------------------------


def report(cuda: bool) -> str:
    device = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU thread(s), {platform.machine()}"
    lines = [f"{datetime.date.today()}, {device}, torch {torch.__version__}", ""]

    def add_table(title: str, head: str, rows: list[str]) -> None:
        lines.extend([title, "", head, "|" + " --- |" * (head.count("|") - 1), *rows, ""])

    if cuda:
        head = "| batch | eager, ms | CUDA graph, ms | tokens/s | bound, tokens/s | of the bound | same tokens |"
        title = "500 tokens, bf16. The bound: weights and caches read once per token at the speed of a large copy."
        add_table(title, head, on_gpu())
        return "\n".join(lines)
    with torch.inference_mode():
        head = "| batch | way | seconds | ours is faster by |"
        add_table("100 objects, all ways choose the same tokens:", head, against_others(1) + against_others(8))
        head = "| room for 100 objects, ends after | tokens | seconds | ms/token |"
        add_table("Stopping at the end token, batch 1:", head, stopping())
        head = "| 6 objects, batch 1 | ms | against unconstrained | mean log-probability of a token |"
        add_table("What choices cost:", head, choices())
    head = "| batch | caches, MiB | peak beyond a short sequence, MiB | rest |"
    add_table("Memory, 500 tokens:", head, memory())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="measure on a GPU")
    parser.add_argument("--write", action="store_true", help=f"keep the result in benchmarks/results/{RESULT.name}")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not a.cuda:
        torch.set_num_threads(1)
    if a.memory:
        memory_of(a.memory)
        return
    text = report(a.cuda)
    print(text)
    if a.write:
        target = RESULT.with_stem("decoding_cuda") if a.cuda else RESULT
        command = "python benchmarks/decoding.py" + " --cuda" * a.cuda
        target.write_text(f"# Generating sequences\n\n`{command}`\n\n{text}\n".rstrip() + "\n")


if __name__ == "__main__":
    main()
