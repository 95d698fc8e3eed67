"""What `monte_carlo` takes as data, and what it refuses before any work."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nft_ext.montecarlo.execution.data_reader import check_label_range, read_data

INPUTS = torch.arange(24.0).reshape(6, 4)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Items(Dataset):
    """A map-style data set that gives Python integers as labels."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, i):
        return INPUTS[i], int(LABELS[i])


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS, LABELS),
        [INPUTS, LABELS.to(torch.uint8)],
        TensorDataset(INPUTS, LABELS),
        Items(),
        DataLoader(Items(), batch_size=4),
        [(INPUTS[i], int(LABELS[i])) for i in range(6)],
    ],
    ids=["pair", "pair, uint8 labels", "TensorDataset", "Dataset", "DataLoader", "list of items"],
)
def test_every_form_of_data_reads_the_same(data):
    inputs, labels = read_data(data)
    assert torch.equal(inputs, INPUTS) and torch.equal(labels, LABELS)
    assert labels.dtype == torch.int64


def test_a_loader_is_read_once():
    reads = []

    class Counted(Items):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    read_data(DataLoader(Counted(), batch_size=4))
    assert sorted(reads) == list(range(6))


@pytest.mark.parametrize(
    "data, kind, words",
    [
        ((INPUTS[:0], LABELS[:0]), ValueError, "at least one image; got 0 images"),
        ([], ValueError, "at least one image; got an empty data set"),
        (DataLoader(Items(), batch_size=8, drop_last=True), ValueError, "at least one image; got no batch"),
        ((INPUTS, LABELS[:5]), ValueError, "same length; got .*6, 4.*5"),
        ((INPUTS, LABELS.double()), ValueError, "labels must be integers; got torch.float64"),
        ((INPUTS, LABELS > 0), ValueError, "labels must be integers; got torch.bool"),
        ((INPUTS, LABELS[:, None]), ValueError, r"shape \[n\]; got \[6, 1\]"),
        ((INPUTS, LABELS - 1), ValueError, "labels must be >= 0; got -1"),
        ((INPUTS.where(INPUTS > 5, torch.nan), LABELS), ValueError, "inputs must be finite; got .* 2 of 6"),
        ((INPUTS.numpy(), LABELS.numpy()), TypeError, "pair of two tensors; got ndarray"),
        (np.zeros((3, 4)), TypeError, "must have items"),
        (7, TypeError, "DataLoader, a map-style Dataset, a pair of tensors, or an iterable of batches; got int"),
    ],
)
def test_bad_data_is_refused_with_the_rule_and_the_value(data, kind, words):
    with pytest.raises(kind, match=f"^data: .*{words}"):
        read_data(data)


def test_labels_must_be_classes_of_the_model():
    check_label_range(LABELS, 3)
    with pytest.raises(ValueError, match=r"data: labels must lie in 0 .. 1, .* 2 classes; got 2"):
        check_label_range(LABELS, 2)
