"""How every suite measures: variants in turn, a process of its own for each peak, no time for a wrong result."""

import importlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import track

from scope_rlhf.models.products import onednn_is_faster
from scope_rlhf.models.rollout_weights import find_rollout_dtype

ROOT = Path(__file__).resolve().parents[2]
ONEDNN_OFF = ", oneDNN off"  # ends the name of a variant with torch's own float32 products
PEAK = "peak-MiB"  # begins a line of the process that measures peaks
Call = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """What the command line sets. A size that is None has a default of each suite's own."""

    device: str = "cpu"
    dtype: str = "float32"
    repetitions: int = 5
    shapes: tuple[str, ...] = ("4x256", "12x768")
    rows: int = 2048
    vocabulary: int = 50257
    width: int = 768
    batch: int = 8
    prompt: int = 32
    completion: int = 64
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    vocabularies: tuple[int, ...] = (4096, 50257, 150000)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    updates: int = 3
    beta: float = 0.0
    trl_python: str | None = None
    output_dir: str = "benchmarks/results"
    skip_peaks: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass
class Row:
    """One variant of one case. errors: name -> (found, greatest allowed). seconds: one for each repetition that counts,
    none where an error is too great. tokens: what one call works on, for tokens/s. more: further columns.
    """

    case: str
    variant: str
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    tokens: int | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def faults(self) -> list[str]:
        """What is wrong with the result, in words."""
        broken = {name: pair for name, pair in self.errors.items() if not pair[0] <= pair[1]}  # NaN is too great
        return [
            f"{self.case} {self.variant}: {name} is off by {found:.2e}, allowed {bound:.1e}"
            for name, (found, bound) in broken.items()
        ]


@dataclass
class Section:
    """One table: ratios are to `baseline` and `floor` in the same case and repetition."""

    title: str
    rows: list[Row]
    baseline: str | None = "trl"
    floor: str | None = None
    files: list[str] = field(default_factory=list)

    def twin(self, row: Row, other: str | None) -> Row | None:
        """The row of `other` in the same case."""
        return next((r for r in self.rows if (r.case, r.variant) == (row.case, other)), None)

    def ratio(self, row: Row, other: str | None) -> float | None:
        """Median over repetitions of this row's seconds over those of `other`; None where one has no times."""
        twin = self.twin(row, other)
        if twin is None or not row.seconds or not twin.seconds:
            return None
        return statistics.median(a / b for a, b in zip(row.seconds, twin.seconds, strict=True))

    def peak_ratio(self, row: Row) -> float | None:
        twin = self.twin(row, self.baseline)
        return row.peak_mib / twin.peak_mib if twin and twin.peak_mib and row.peak_mib is not None else None

    def lines(self) -> list[dict[str, str]]:
        """The table's cells by column; columns that no row fills are left out."""
        lines = []
        for row in self.rows:
            cells: dict[str, Any] = {"case": row.case, "variant": row.variant}
            cells["median ms"] = row.median * 1e3 if row.seconds else None
            cells["min ms"] = min(row.seconds) * 1e3 if row.seconds else None
            cells[f"x {self.baseline}"] = self.ratio(row, self.baseline)
            cells["x floor"] = self.ratio(row, self.floor)
            cells["tokens/s"] = row.tokens / row.median if row.tokens and row.seconds else None
            cells["peak MiB"] = row.peak_mib
            cells["x peak"] = self.peak_ratio(row)
            cells |= row.more
            cells |= {f"{name} error": f"{found:.1e}" if found else "0" for name, (found, _) in row.errors.items()}
            cells["result"] = "WRONG" if row.faults else "right" if row.errors else None
            lines.append({name: show(value) for name, value in cells.items()})
        names = dict.fromkeys(name for line in lines for name, text in line.items() if text)
        names |= {"result": names.pop("result", None)} if "result" in names else {}
        if len({row.case for row in self.rows}) == 1:
            del names["case"]
        return [{name: line.get(name, "") for name in names} for line in lines]


def offered(variants: Iterable[str], options: Options) -> list[str]:
    """Those that say something here: none with oneDNN off where ours are torch's own products anyway
    (models/products.py), none with bfloat16 where the device has no instructions for it.
    """
    differ, device = options.dtype == "float32" and onednn_is_faster(), torch.device(options.device)
    return [
        name
        for name in variants
        if (not name.endswith(ONEDNN_OFF) or (differ and device.type == "cpu"))
        and ("bfloat16" not in name or find_rollout_dtype("bfloat16", device) is not None)
    ]


@contextmanager
def products_of(variant: str) -> Iterator[None]:
    """The context in which a variant of that name runs."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not variant.endswith(ONEDNN_OFF)
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def time_in_turn(calls: Mapping[str, Call], options: Options, label: str) -> dict[str, list[float]]:
    """Seconds of each call: processor time, or the GPU's by events. Each repetition runs all of them, beginning one
    later than the one before.
    """
    names, seconds = list(calls), {name: [] for name in calls}
    for i in track(range(options.repetitions), label, console=Console(stderr=True), disable=not names):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            seconds[name].append(_seconds(calls[name], options.device))
    return seconds


def _seconds(call: Call, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def compare(
    suite: str,
    case: str,
    calls: Mapping[str, Call],
    check: Callable[[str, Any], dict[str, tuple[float, float]]],
    options: Options,
    tokens: int | None = None,
) -> list[Row]:
    """A row for each call. A first round, which is not timed, gives the results for their errors; what is right also
    gets times and its peak.

    check: (name, result of the call) -> errors, as in Row. tokens: as in Row.
    """
    rows = [Row(case, name, check(name, call()), tokens=tokens) for name, call in calls.items()]
    right = [row for row in rows if not row.faults]
    seconds = time_in_turn({row.variant: calls[row.variant] for row in right}, options, f"{suite} {case}")
    peaks = [] if options.skip_peaks else fresh_peaks(suite, case, [row.variant for row in right], options)
    for i, row in enumerate(right):
        row.seconds, row.peak_mib = seconds[row.variant], peaks[i] if peaks else None
    return rows


def fresh_peaks(suite: str, case: str, variants: list[str], options: Options) -> list[float]:
    """MiB that one call of each variant needs at its peak over what was there before, each in a process of its own.

    The suite's `prepare(case, variant, options)` gives the call.
    """
    code = "from benchmarks.speed.measure import print_peaks; print_peaks()"
    done = run_python(["-c", code, json.dumps([suite, case, variants, asdict(options)])])
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(PEAK)]


def run_python(words: list[str], python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Python in the repository's root on one thread; RuntimeError with what it printed where it fails."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    done = subprocess.run([python, *words], env=os.environ | alone, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def find_options(given: dict[str, Any]) -> Options:
    """The options that were written as JSON."""
    return Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def print_peaks() -> None:
    """What fresh_peaks runs: a process that has imported the suite, and nothing more, and forks for each variant."""
    suite, case, variants, given = json.loads(sys.argv[1])
    options = find_options(given)
    torch.set_num_threads(1)
    prepare = importlib.import_module(f"benchmarks.speed.{suite}").prepare
    for variant in variants:
        sys.stdout.flush()
        if child := os.fork():
            if os.waitpid(child, 0)[1]:
                sys.exit(1)
        else:
            print(f"\n{PEAK} {peak_of(prepare(case, variant, options), options.device)}", flush=True)
            os._exit(0)


def peak_of(call: Call, device: str) -> float:
    """MiB of the call's peak over the state before: the allocator's on a GPU, else resident memory."""
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = psutil.Process().memory_info().rss
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        call()
        unit = 1 if sys.platform == "darwin" else 1024
        return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before, 0) / 2**20
    clear.write_text("5")  # the peak so far is forgotten
    call()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return (peak * 1024 - before) / 2**20


def relative(found: Any, expected: Any) -> float:
    """|found - expected| / |expected| as vectors."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-300))


def slope(sizes: list[float], values: list[float]) -> float:
    """Exponent of values ~ size ** exponent by least squares on logarithms; NaN for fewer than two sizes."""
    if len(sizes) < 2:
        return math.nan
    xs, ys = ([math.log(max(x, 1e-12)) for x in numbers] for numbers in (sizes, values))
    return statistics.linear_regression(xs, ys).slope
