"""Every structure of data that `monte_carlo` takes gives the same figures, and what it cannot cut it refuses."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import nft_ext as nft
from nft_ext.montecarlo.execution.data_reader import read_examples
from support.tasks import NVM, Encoding, chips_of, cut, encoder, sentences

RUNS = 5


@pytest.fixture(scope="module")
def model():
    return encoder()


@pytest.fixture(scope="module")
def whole():
    return sentences()


class Rows(Dataset):
    """A map-style data set of dicts, as a data set of Hugging Face: tensors, or plain lists and numbers."""

    def __init__(self, whole, plain):
        self.whole, self.plain = whole, plain

    def __len__(self):
        return len(self.whole["labels"])

    def __getitem__(self, i):
        row = {name: tensor[i] for name, tensor in self.whole.items()} | {"text": f"sentence {i}"}
        return (
            {name: value.tolist() if torch.is_tensor(value) else value for name, value in row.items()}
            if self.plain
            else row
        )


def by_hand(model, whole):
    """Accuracy per chip, from whole networks with programmed weights."""
    found = []
    for chip in chips_of(model, RUNS):
        with torch.no_grad():
            logits = chip(whole["input_ids"], whole["attention_mask"]).logits
        found.append((logits.argmax(1) == whole["labels"]).double().mean().item())
    return found


FORMS = {
    "a mapping of tensors": lambda w: w,
    "a BatchEncoding": lambda w: Encoding(w),
    "batches": lambda w: cut(w, 6),
    "BatchEncodings": lambda w: [Encoding(part) for part in cut(w, 6)],
    "a generator": lambda w: iter(cut(w, 6)),
    "a data set of tensors": lambda w: Rows(w, plain=False),
    "a data set of lists": lambda w: Rows(w, plain=True),
    "a list of examples": lambda w: [Rows(w, plain=True)[i] for i in range(20)],
    "a DataLoader": lambda w: DataLoader(Rows(w, plain=False), batch_size=7),
    "arrays": lambda w: [{name: value[i].numpy() for name, value in w.items()} for i in range(20)],
}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_of_data_gives_the_same_report(model, whole, form):
    report = nft.monte_carlo(model, FORMS[form](whole), runs=RUNS, progress=False)
    assert report.accuracy.per_run.tolist() == by_hand(model, whole)
    assert len(set(report.accuracy.per_run)) > 1, "all chips alike would prove nothing"
    assert report.images == 20 and report.classes == 4 and "20 examples" in str(report)


@pytest.mark.parametrize("options", [{"chips_per_pass": 1}, {"chips_per_pass": 3, "batch_size": 7}], ids=str)
def test_batching_changes_nothing_but_rounding(model, whole, options):
    one, other = (
        nft.monte_carlo(model, whole, runs=RUNS, progress=False, metrics=("accuracy", "nll", "ece"), **o)
        for o in ({}, options)
    )
    assert one.accuracy.per_run.tolist() == other.accuracy.per_run.tolist()
    for name in ("nll", "ece"):
        np.testing.assert_allclose(one.metrics[name].per_run, other.metrics[name].per_run, rtol=1e-4)


def test_slices_of_a_mapping_are_those_of_its_examples(model, whole):
    """Run r is chip r on slice r, whichever container holds the examples."""
    from nft_ext.montecarlo.statistics.slices import Slices

    report = nft.monte_carlo(
        model, cut(whole, 6), runs=9, protocol="stratified", slice_images=6, progress=False, chips_per_pass=2
    )
    for draw, chip in enumerate(chips_of(model, 9)):
        numbers, counted = Slices(0, 20, 6).of([draw])
        mine = numbers[0][counted[0]]
        with torch.no_grad():
            right = (
                chip(whole["input_ids"][mine], whole["attention_mask"][mine]).logits.argmax(1) == whole["labels"][mine]
            )
        assert report.accuracy.per_run[draw] == right.double().mean().item()


def ragged(whole, size=6):
    """Batches cut to the longest sentence of each, as a collator pads them."""
    found = []
    for part in cut(whole, size):
        longest = int(part["attention_mask"].sum(1).max())
        found.append({name: t[:, :longest] if t.dim() == 2 else t for name, t in part.items()})
    found[0] = {name: nn.functional.pad(t, (0, 2)) if t.dim() == 2 else t for name, t in found[0].items()}
    return found


def test_batches_of_their_own_lengths_stay_as_they_are(model, whole):
    report = nft.monte_carlo(model, ragged(whole), runs=RUNS, progress=False, chips_per_pass=3)
    assert report.accuracy.per_run.tolist() == by_hand(model, whole) and report.chips_per_pass == 3


def test_slices_of_batches_of_different_lengths_are_refused_with_the_reason(model, whole):
    with pytest.raises(ValueError, match=r"^protocol: must be 'full' for this data.*have different shapes: "):
        nft.monte_carlo(model, ragged(whole), runs=RUNS, protocol="stratified", progress=False)


def test_a_batch_without_a_common_dim_0_runs_one_chip_per_pass():
    """As a graph: nodes, edges between them, and one label per graph."""

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x, edges, graph, count):
            x = self.fc(x)
            x = x.index_add(0, edges[1], x[edges[0]])
            return x.new_zeros(int(count), 4).index_add(0, graph, x)

    torch.manual_seed(0)
    model = nft.convert(Graph(), NVM)
    batches = [
        {"x": torch.randn(6, 3), "edges": torch.randint(6, (2, 9)), "graph": torch.tensor([0, 0, 1, 1, 1, 2])}
        | {"count": torch.tensor(3), "labels": torch.randint(4, (3,))}
        for _ in range(4)
    ]
    report = nft.monte_carlo(model, batches and iter(batches), runs=RUNS, progress=False, chips_per_pass=4)
    for draw, chip in enumerate(chips_of(model, RUNS)):
        right = [(chip(b["x"], b["edges"], b["graph"], b["count"]).argmax(1) == b["labels"]).double() for b in batches]
        assert report.accuracy.per_run[draw] == torch.cat(right).mean().item()
    assert report.chips_per_pass == 1
    assert any("one chip per pass: the tensors of a batch have no common dim 0" in note for note in report.notes)


@pytest.mark.parametrize(
    "data, kind, words",
    [
        ([torch.arange(3), torch.arange(3), torch.arange(3)], ValueError, "may be examples or batches"),
        ({"a": torch.ones(3), "b": torch.ones(4)}, ValueError, r"one length, if it is a mapping; .*\[3\], \[4\]"),
        ({}, TypeError, "must have batches, or items, with tensors"),
        (iter([]), ValueError, "at least one image; got no batch"),
        ("text", TypeError, "DataLoader, a map-style Dataset"),
        ([{"a": 1}, {"b": 2}], ValueError, "items with the same keys"),
        ([{"a": [1, 2]}, {"a": [1]}], ValueError, "items of one shape: pad them"),
        ([object(), object()], TypeError, "must have items"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_data_that_cannot_be_read_is_refused(data, kind, words):
    with pytest.raises(kind, match=f"^data: .*{words}"):
        read_examples(data)


def test_a_dict_without_the_arguments_of_the_forward_is_refused(model, whole):
    with pytest.raises(ValueError, match="^batch: must have the keys that the model's forward names.*lacks input_ids"):
        nft.monte_carlo(model, {"tokens": whole["input_ids"], "labels": whole["labels"]}, runs=2, progress=False)


class InPlace(nn.Module):
    """A network that overwrites its input."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x.mul_(0.5))


def test_a_forward_that_writes_to_its_input_leaves_the_data_alone():
    model = nft.convert(InPlace(), NVM)
    x = torch.randn(8, 4)
    before = x.clone()
    report = nft.monte_carlo(model, (x, torch.arange(8) % 3), runs=4, chips_per_pass=1, progress=False, sigma=0.0)
    assert torch.equal(x, before) and report.accuracy.std == 0
