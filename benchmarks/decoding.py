"""How long 100 objects take to write, against the ways in which others do it; and what choices cost.

    python benchmarks/decoding.py [--write]
    python benchmarks/decoding.py --cuda [--write]

The decoder is that of the ResNet-50 recipe (6 layers of 256, 8 heads, vocabulary 3000) with random weights, looking at
the 400 cells of a 640 px image. The other ways are written here, on the same weights, and choose by the same grammar:

    whole prefix      nothing is kept: each step reads the whole sentence, as Stable-Pix2Seq and the tutorials do
    grown cache       keys and values of the sentence grow by concatenation, those of the image are made at each step,
                      as Pretrained-Pix2Seq does
    official          the layers' inputs are kept; all keys and values, of sentence and image, are made at each step

Each of their steps costs more than the one before, so it is timed at places spread evenly over the sentence, where the
token it chooses must be ours; the time of the sentence is the mean times the number of steps. Times on the CPU are
those of one thread's work, the least of several runs in a row, so that neighbours on the machine count little.
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
    """The decoder; its tables are larger than at the start of training, so that choices are clear."""
    torch.manual_seed(0)
    decoder = SequenceDecoder(3000, objects * SLOTS + 12, SLOTS, 6, DIM, 1024, 8, 0.0, 0.0).eval()
    for table in (decoder.token_embedding, decoder.position_embedding):
        torch.nn.init.normal_(table, std=0.3)
    return decoder.to(device, dtype).requires_grad_(False)


def images(batch: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, CELLS, DIM, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def language(device: str = "cpu", free: bool = False) -> TokenConstraints:
    return Vocabulary().token_constraints(80, free=free, device=device)


# -- the other ways ------------------------------------------------------------------------------------------------


class WholePrefix:
    """Nothing is kept."""

    def __init__(self, decoder: SequenceDecoder, memory_BME: Tensor, prefix_BL: Tensor):
        self.decoder, self.memory_BME, self.prefix_BL = decoder, memory_BME, prefix_BL

    def step(self) -> Tensor:
        return self.decoder(self.prefix_BL, self.memory_BME)[:, -1]


class Kept:
    """What the layers have of the words before the last one, made outside the clock."""

    def __init__(self, decoder: SequenceDecoder, memory_BME: Tensor, prefix_BL: Tensor):
        self.decoder, self.memory_BME = decoder, memory_BME
        self.kept = []
        x_BLE = self.embed(prefix_BL, slice(0, prefix_BL.shape[1]))
        self.last_B1E, x_BLE = x_BLE[:, -1:], x_BLE[:, :-1]
        for layer in decoder.layers:
            self.kept.append(self.keep(layer, layer.self_norm(x_BLE)))
            x_BLE = layer(x_BLE, layer.cross_attention.keys_values(memory_BME)) if x_BLE.shape[1] else x_BLE

    def embed(self, tokens_BL: Tensor, places: slice) -> Tensor:
        return self.decoder.token_embedding[tokens_BL] + self.decoder.position_embedding[places]

    def step(self) -> Tensor:
        x_B1E = self.last_B1E
        for layer, kept in zip(self.decoder.layers, self.kept, strict=True):
            seen = self.look_back(layer, kept, layer.self_norm(x_B1E))
            x_B1E = x_B1E + layer.self_attention(layer.self_norm(x_B1E), seen)
            image = layer.cross_attention.keys_values(self.memory_BME)
            x_B1E = layer.mlp(x_B1E + layer.cross_attention(layer.cross_norm(x_B1E), image))
        return self.decoder._logits(x_B1E[:, -1])


class GrownCache(Kept):
    """Keys and values of the sentence grow by concatenation; those of the image are made again."""

    def keep(self, layer: DecoderBlock, normed_BLE: Tensor) -> KeysValues:
        return layer.self_attention.keys_values(normed_BLE)

    def look_back(self, layer: DecoderBlock, kept: KeysValues, normed_B1E: Tensor) -> KeysValues:
        new = layer.self_attention.keys_values(normed_B1E)
        return KeysValues(*(torch.cat(pair, 2) for pair in zip(kept, new, strict=True)))


class Official(Kept):
    """The layers' normed inputs are kept; all keys and values are made again."""

    def keep(self, layer: DecoderBlock, normed_BLE: Tensor) -> Tensor:
        return normed_BLE

    def look_back(self, layer: DecoderBlock, kept: Tensor, normed_B1E: Tensor) -> KeysValues:
        return layer.self_attention.keys_values(torch.cat([kept, normed_B1E], 1))


# -- measuring -----------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object], times: int = 1) -> float:
    """The least of several runs: of the clock on a GPU, of work on the CPU."""
    clock, taken = time.perf_counter if torch.cuda.is_available() else time.process_time, []
    for _ in range(times):
        started = clock()
        function()
        taken.append(clock() - started)
    return min(taken)


def other_way(
    kind: type, decoder: SequenceDecoder, memory_BME: Tensor, grammar: TokenConstraints, tokens_BL: Tensor
) -> float:
    """Seconds for a whole sentence, from steps at ten places; each must choose our token."""
    begun_BL = torch.nn.functional.pad(tokens_BL, (1, 0), value=grammar.start)
    taken = []
    for place in range(25, tokens_BL.shape[1], 50):
        way = kind(decoder, memory_BME, begun_BL[:, : place + 1])
        taken.append(seconds(way.step, 4))
        allowed_BV = way.step().masked_fill(~grammar.allowed_PV[place % SLOTS], -torch.inf)
        low = grammar.at_least[place % SLOTS]
        if low is not None:
            least_B1 = begun_BL[:, place + 1 - place % SLOTS + low][:, None]
            allowed_BV = allowed_BV.masked_fill(torch.arange(allowed_BV.shape[1]) < least_B1, -torch.inf)
        assert (allowed_BV.argmax(-1) == tokens_BL[:, place]).all(), f"{kind.__name__} differs at {place}"
    return statistics.mean(taken) * tokens_BL.shape[1]


def against_others(batch: int) -> list[str]:
    decoder, memory, grammar = make(), images(batch), language()
    said = generate(decoder, memory, grammar, OBJECTS)
    ours = seconds(lambda: generate(decoder, memory, grammar, OBJECTS), 2)
    rows = [f"| {batch} | boxwright | {ours:.2f} | 1.0 x |"]
    for name, kind in (("whole prefix", WholePrefix), ("grown cache", GrownCache), ("official", Official)):
        theirs = other_way(kind, decoder, memory, grammar, said.tokens_BL)
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
    """What grammar, samplers and beams cost a sentence of 6 objects."""
    decoder, memory, rows = make(), images(1), []
    ways = {
        "free, greedy": (language(free=True), Sampling()),
        "grammar, greedy": (language(), Sampling()),
        "grammar, no repeats": (language(), Sampling(repeats=False)),
        "grammar, all drawn": (language(), Sampling(1.0)),
        "grammar, top-k 50": (language(), Sampling(1.0, top_k=50)),
        "grammar, official nucleus .4": (language(), Sampling(0.4)),
        "grammar, standard nucleus .4": (language(), Sampling(0.4, "standard")),
        "grammar, 2 beams": (language(), Sampling(beams=2)),
        "grammar, 3 beams": (language(), Sampling(beams=3)),
    }
    sides = {
        name: lambda grammar=grammar, sampling=sampling: generate(decoder, memory, grammar, 6, sampling)
        for name, (grammar, sampling) in ways.items()
    }
    taken = in_turns(sides, 20)
    free = taken["free, greedy"]
    for name, value in taken.items():
        said = sides[name]()
        rows.append(f"| {name} | {value * 1e3:.1f} | {value / free - 1:+.1%} | {said.log_probs_BL.mean():.3f} |")
    return rows


def stopping() -> list[str]:
    """Time against the number of tokens: the end comes after so many objects, of room for 100."""
    decoder, memory, grammar, rows = make(), images(1), language(), []

    class Ending:
        """The decoder, whose end token becomes certain after some objects."""

        def __init__(self, objects: int):
            self.last = objects * SLOTS

        def start(self, *given):
            return decoder.start(*given)

        def step(self, tokens_BL, positions_L, cache):
            scores_BV = decoder.step(tokens_BL, positions_L, cache)
            scores_BV[:, grammar.end] += torch.where(positions_L[-1] < self.last, -100.0, 1000.0)
            return scores_BV

    counts = (5, 12, 25, 50, 100)
    sides = {str(n): lambda n=n: generate(Ending(n), memory, grammar, 100, Sampling(end_bias=0.0)) for n in counts}
    taken = in_turns(sides, 3)
    for name, value in taken.items():
        tokens = int(name) * SLOTS + (int(name) < 100)
        rows.append(f"| {name} | {tokens} | {value:.3f} | {value / tokens * 1e3:.2f} |")
    return rows


def memory() -> list[str]:
    """The peak of a process of its own, batch 32, 500 tokens, beside the caches' own size."""
    rows = []
    for batch in (1, 32):
        command = [sys.executable, __file__, "--memory", str(batch)]
        used, caches = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        rows.append(f"| {batch} | {caches:.0f} | {used:.0f} | {used - caches:.0f} |")
    return rows


def memory_of(batch: int) -> None:
    """Print MiB: how far this process grows beyond what it holds after a short sentence, and the caches (Linux)."""
    decoder, grammar = make(), language()
    generate(decoder, images(1), grammar, 1)
    given = images(batch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    generation = Generation(decoder, given, grammar, OBJECTS, Sampling())
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
    """The work for one object, recorded once for each bucket as a CUDA graph, and played for each object."""

    def __init__(self, decoder: SequenceDecoder, memory_BME: Tensor, grammar: TokenConstraints):
        self.generation = Generation(decoder, memory_BME, grammar, OBJECTS, Sampling())
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

    def write(self) -> Tensor:
        self.generation.position_1.zero_()
        for number in range(OBJECTS):
            self.graphs[self.generation.bucket(number)].replay()
        torch.cuda.synchronize()
        return self.generation.tokens_BL[:, 1:].clone()


@torch.inference_mode()
def on_gpu() -> list[str]:
    """Milliseconds a sentence and tokens a second, beside what reading weights and caches once a token would take."""
    decoder, grammar, rows = make("cuda", torch.bfloat16), language("cuda"), []
    bandwidth = copy_bandwidth()
    for batch in (1, 32):
        given = images(batch, "cuda", torch.bfloat16)
        eager = generate(decoder, given, grammar, OBJECTS).tokens_BL
        eager_seconds = seconds(lambda given=given: generate(decoder, given, grammar, OBJECTS).tokens_BL.cpu(), 3)
        recorded = Recorded(decoder, given, grammar)
        same = (recorded.write() == eager).float().mean()
        taken = seconds(recorded.write, 10)
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
    """Bytes a second that a large copy reads and writes."""
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

    def table(title: str, head: str, rows: list[str]) -> None:
        lines.extend([title, "", head, "|" + " --- |" * (head.count("|") - 1), *rows, ""])

    if cuda:
        head = "| batch | eager, ms | CUDA graph, ms | tokens/s | bound, tokens/s | of the bound | same tokens |"
        title = "500 tokens, bf16. The bound: weights and caches read once a token at the speed of a large copy."
        table(title, head, on_gpu())
        return "\n".join(lines)
    with torch.inference_mode():
        head = "| batch | way | seconds | ours is faster by |"
        table("100 objects, all ways choose the same tokens:", head, against_others(1) + against_others(8))
        head = "| room for 100 objects, ends after | tokens | seconds | ms/token |"
        table("Stopping at the end token, batch 1:", head, stopping())
        head = "| 6 objects, batch 1 | ms | against free | mean log-probability of a token |"
        table("What choices cost:", head, choices())
    head = "| batch | caches, MiB | peak beyond a short sentence, MiB | rest |"
    table("Memory, 500 tokens:", head, memory())
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
    said = report(a.cuda)
    print(said)
    if a.write:
        target = RESULT.with_stem("decoding_cuda") if a.cuda else RESULT
        command = "python benchmarks/decoding.py" + " --cuda" * a.cuda
        target.write_text(f"# Writing sentences\n\n`{command}`\n\n{said}\n".rstrip() + "\n")


if __name__ == "__main__":
    main()
