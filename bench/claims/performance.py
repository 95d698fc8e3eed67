"""Entries of docs/performance.md and README.md: speeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any

from bench.claims.page import Claim, Page
from bench.claims.timings import MILLI, RESULTS, cpu, fastest, gpu, gpu_mode, variants, versus

FILES = {
    "zen4": "2026-11-26-cpu-2cores-avx512-zen4",
    "zen4-repeat": "2026-11-26-cpu-2cores-avx512-zen4-repeat",
    "zen4-batches": "2026-11-26-cpu-2cores-avx512-zen4-batches",
    "zen4-bf16": "2026-11-26-cpu-2cores-avx512-zen4-bf16",
    "avx2": "2026-11-26-cpu-2cores-avx2-cascade",
    "avx2-128": "2026-11-26-cpu-2cores-avx2-cascade-128-images",
    "xeon": "2026-11-26-cpu-2cores-avx512",
    "h100-octets": "2026-11-26-h100-octets",
    "h100-cudnn": "2026-11-26-h100-cudnn-epilogue",
    "evaluation": "2026-11-26-evaluation",
    "ranks": "2026-11-26-ranks",
    "scaling": "2026-11-26-scaling-repeats",
}
PATHS = {label: f"{RESULTS}{name}.json" for label, name in FILES.items()}
Figures = Callable[[Any], list[float]]


def row(label: str, file: str, figures: Figures, unit: str = "ms", target: str = "") -> Claim:
    """A row of the table of speeds; `file` is the page's own link, so the row is compared with the file it names."""
    cells = f"| {label} | {{}} {unit} | {{}} {unit} | {{}} |"
    return Claim(f"{cells} {target} | [{file}] |" if target else f"{cells} | [{file}] |", [PATHS[file]], figures)


WEIGHT, DEVICE = "one normal", "one a device"
BOTH = "bf16 one normal against one normal"


def sampler_and_image() -> list[Figures]:
    """The first seven rows: the sampler, then one image, whose PyTorch side may have any precision."""
    sampler = partial(cpu, "sampler", precision="fp32", cached=False)
    return [
        sampler(),
        sampler(named="weights new"),
        sampler(WEIGHT, DEVICE),
        sampler(DEVICE, DEVICE),
        one_image(WEIGHT, WEIGHT),
        one_image(WEIGHT, DEVICE),
        one_image(DEVICE, DEVICE),
    ]


def one_image(ours: str, theirs: str) -> Figures:
    def figures(file: Any) -> list[float]:
        rows = variants(file, "resnet18-1")
        return versus(fastest(rows, "nft", ours, precision="fp32"), fastest(rows, "torch", theirs), MILLI)

    return figures


FIRST_ROWS = (
    ("sample ResNet-18's weights", "7"),
    ("the same, weights new at every call", "7"),
    ("the same, PyTorch with one normal per device", "20"),
    ("the same, both with one normal per device", ""),
    ("ResNet-18, 1 image", "4"),
    ("ResNet-18, 1 image, PyTorch with one normal per device", "10"),
    ("ResNet-18, 1 image, both with one normal per device", ""),
)


def cpu_rows() -> list[Claim]:
    found = []
    for file, count in (("zen4-repeat", 7), ("avx2", 7), ("xeon", 2)):
        for (label, target), figures in list(zip(FIRST_ROWS, sampler_and_image(), strict=True))[:count]:
            found.append(row(label, file, figures, target=target))
    return [
        *found,
        row("ResNet-18, 8 images", "zen4-batches", cpu("resnet18-8")),
        row("ResNet-18, 128 images", "zen4-batches", cpu("resnet18-128"), target="1"),
        row("ResNet-18, 8 images, bfloat16", "zen4-bf16", cpu("resnet18-8")),
        row("ResNet-18, 128 images, bfloat16", "zen4-bf16", cpu("resnet18-128")),
        row("ResNet-18, 128 images", "avx2-128", cpu("resnet18-128"), target="1"),
    ]


def gpu_rows() -> list[Claim]:
    octets, cudnn = "h100-octets", "h100-cudnn"
    layer = "linear-8192x1024, {} rows, {}".format
    return [
        row("sample 4 x ResNet-18's weights", cudnn, gpu("sampler", "sampler", BOTH), "us"),
        row("the same, weights new at every call", cudnn, gpu("sampler", "sampler", f"{BOTH}, anew"), "us"),
        row("linear 8192 x 1024, 1 row, 1 chip", cudnn, gpu("layers", layer(1, "1 chip"), BOTH), "us", "1.3"),
        row("linear 8192 x 1024, 256 rows, 1 chip", cudnn, gpu("layers", layer(256, "1 chip"), BOTH), "us", "1.3"),
        row("linear 8192 x 1024, 256 rows, 8 chips", cudnn, gpu("layers", layer(256, "8 chips"), BOTH), "us", "1.3"),
        row(
            "convolution 512 channels, 4 x 4, 256 rows, 1 chip",
            cudnn,
            gpu("layers", "conv2d-512x4, 256 rows, 1 chip", BOTH),
            "us",
            "1.3",
        ),
        row(
            "convolution 256 channels, 8 x 8, 64 rows, 8 chips",
            cudnn,
            gpu("layers", "conv2d-256x8, 64 rows, 8 chips", BOTH),
            "us",
            "1.3",
        ),
        row(
            "float32: linear 8192 x 1024, 1 row, 1 chip",
            cudnn,
            gpu("layers", layer(1, "1 chip"), "fp32 one normal against one normal"),
            "us",
        ),
        row(
            "gradient of the input: linear 8192 x 1024, 256 rows, 8 chips",
            octets,
            gpu("gradients", f"dL/dx of {layer(256, '8 chips')}", BOTH),
            "us",
        ),
        row("ResNet-18, 1 image", cudnn, gpu("network", "resnet18-1-bf16", BOTH), "us"),
        row("ResNet-18, 128 images", cudnn, gpu("network", "resnet18-128-bf16", BOTH), "us", "2"),
        row(
            "ResNet-18, 128 images, PyTorch without noise",
            cudnn,
            gpu("network", "resnet18-128-bf16", "bf16 one normal against noise-free"),
            "us",
            "0.9",
        ),
        row(
            "ResNet-18, 128 images, neither side compiled or in a graph",
            cudnn,
            gpu_mode("network", "resnet18-128-bf16", MILLI, mode="eager"),
        ),
        row(
            "float32: ResNet-18, 128 images",
            cudnn,
            gpu("network", "resnet18-128-fp32", "fp32 one normal against one normal"),
            "us",
        ),
        row(
            "float32: ResNet-18, 128 images, neither side compiled or in a graph",
            cudnn,
            gpu_mode("network", "resnet18-128-fp32", MILLI, mode="eager"),
        ),
        row("OVF step, N = 3, ResNet-18, 128 images", octets, gpu("training", "ovf-step:", BOTH, MILLI), "ms", "1.5"),
        row(
            "OVF step, neither side compiled or in a graph",
            octets,
            gpu_mode("training", "ovf-step:", MILLI, mode="eager"),
        ),
        row("OVF step, peak memory (smaller is better)", octets, peak_memory, "GB", "0.6"),
    ]


def peak_memory(file: Any) -> list[float]:
    (found,) = file["stages"]["training"]["found"]["memory"]
    ours, theirs = found["ours_bytes"], found["against_bytes"]
    return [ours / 1e9, theirs / 1e9, ours / theirs]


def target(rule: str) -> Figures:
    def figures(file: Any) -> list[float]:
        (found,) = [verdict for verdict in file["targets"] if verdict["rule"].startswith(rule)]
        return [found["value"]]

    return figures


def earlier(file: Any) -> list[float]:
    return [figures(file)[2] for figures in sampler_and_image()]


def evaluation(sigma: float) -> Figures:
    def figures(file: Any) -> list[float]:
        (found,) = [result for result in file["results"] if result["sigma"] == sigma]
        seconds = {name: median(values) for name, values in found["seconds"].items()}
        ours, plain = seconds["nft target"], 200 * seconds["plain"]
        every = 200 * 10_000
        accuracy = 100 * mean(report["mean"] for report in found["stratified"])
        evaluated = mean(report["images_evaluated"] for report in found["stratified"])
        passed = mean(report["images_passed"] for report in found["stratified"])
        return [accuracy, 100 * found["std"], ours, plain, plain / ours, every / evaluated, every / passed]

    return figures


def per_sigma(name: str) -> Figures:
    return lambda file: [result[name] for result in file["results"]]


def ranks(file: Any) -> list[float]:
    whole, slices = (file["results"][name] for name in ("whole sets", "slices of 16 images"))
    return [whole["speedup"], slices["speedup"], whole["limit"], slices["limit"]]


def estimates(file: Any) -> list[float]:
    ratios = sorted(result["ratio"] for repeat in file["repeats"] for result in repeat["results"].values())
    return [len(ratios) - 1, len(ratios), ratios[1], ratios[-1], ratios[0]]


def marked(file: Any) -> list[float]:
    found = {name: stage["found"] for name, stage in file["stages"].items()}
    tests = found["marked"]["tests"]
    passed = tests - len(found["marked"]["failed"]) - len(found["marked"]["skipped"])
    return [passed, int(found["memcheck"]["summary"].rpartition(" of ")[2].split()[0])]


def identity(*files: Any) -> list[float]:
    found = [file["stages"]["identity"]["found"] for file in files]
    assert len({stage["compared"] for stage in found}) == 1
    return [min(stage["compared"] - len(stage["wrong"]) for stage in found), found[0]["compared"]]


PERFORMANCE = Page(
    "docs/performance.md",
    [
        *cpu_rows(),
        *gpu_rows(),
        Claim("sampling takes {} times its floor", [PATHS["h100-cudnn"]], target("sampler, bf16")),
        Claim("earlier build it took {} times.", [PATHS["h100-octets"]], target("sampler, bf16")),
        Claim(
            "{} of {} cases equal the CPU's chips bit for bit", [PATHS["h100-octets"], PATHS["h100-cudnn"]], identity
        ),
        Claim("tests: {} passed, one skipped", [PATHS["h100-octets"]], lambda file: marked(file)[:1]),
        Claim("no error in {} shapes", [PATHS["h100-octets"]], lambda file: marked(file)[1:]),
        Claim("gave {}, {}, {}, {}, {}, {} and {} for the first seven rows", [PATHS["zen4"]], earlier),
        *(
            Claim(
                f"| {sigma} | {{}} | {{}} | {{}} | {{}} | {{}} | {{}} | {{}} |",
                [PATHS["evaluation"]],
                evaluation(sigma),
            )
            for sigma in (0.4, 0.3, 0.25)
        ),
        Claim(
            "standard deviation of 50 chips on whole sets was only {} and {} points",
            [PATHS["evaluation"]],
            lambda file: [100 * result["full"]["std"] for result in file["results"][1:]],
        ),
        Claim(
            "the ratios are {}, {} and {}. With our estimator",
            [PATHS["evaluation"]],
            per_sigma("engine_factor_whole_sets"),
        ),
        Claim("would take {}, {} and {} times our time", [PATHS["evaluation"]], per_sigma("engine_factor_slices")),
        Claim(
            "took {} times less than one rank on whole sets, and {} times less on slices of 16 images. Two processes "
            "that share nothing reached {} and {}",
            [PATHS["ranks"]],
            ranks,
        ),
        Claim(
            "{} of {} evaluations took {} to {} times the time that `nft.estimate_cost` gave, and one took {} times",
            [PATHS["scaling"]],
            estimates,
        ),
    ],
    stated=[r"\(target 1\.3\)", "its time is 200 times the median"],
)


def ratio(label: str, number: int, link: str, file: str, figures: Figures) -> Claim:
    """A row of the front page's table."""
    return Claim(f"| {label} | {{}} | ({number}) | [JSON][{link}] |", [PATHS[file]], lambda data: figures(data)[2:])


README = Page(
    "README.md",
    [
        ratio(
            "quantize and sample all weights, two Zen 4 cores, float32",
            1,
            "repeat",
            "zen4-repeat",
            sampler_and_image()[0],
        ),
        ratio("one image, the same cores, float32", 1, "repeat", "zen4-repeat", one_image(WEIGHT, WEIGHT)),
        ratio("128 images, the same cores, float32", 2, "batches", "zen4-batches", cpu("resnet18-128")),
        ratio(
            "we lose: 128 images, one H100, bfloat16, both sides eager",
            3,
            "h100",
            "h100-cudnn",
            gpu_mode("network", "resnet18-128-bf16", MILLI, mode="eager"),
        ),
    ],
)
