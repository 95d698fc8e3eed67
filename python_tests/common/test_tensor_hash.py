"""The hash of tensors is that of the files written so far, however large the parts are in which it is computed."""

import hashlib

import pytest
import torch

from nft_ext._common import tensor_hash as module
from nft_ext._common.tensor_hash import tensor_hash

IMAGES = torch.arange(24, dtype=torch.float32).reshape(4, 3, 2)
TENSORS = [
    ("w", IMAGES),
    ("turned", IMAGES.mT),
    ("half", IMAGES.bfloat16()),
    ("count", torch.tensor(3)),
    ("none", torch.zeros(0, 4)),
    ("flags", torch.tensor([True, False])),
]


def by_definition(tensors, text="", names=True):
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        digest.update((f"{name} " if names else "").encode() + f"{tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()))
    return digest.hexdigest()


@pytest.mark.parametrize("chunk", [1, 40, 1 << 26])
def test_the_hash_of_checkpoints_journals_and_states(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert tensor_hash(TENSORS) == by_definition(TENSORS)
    assert tensor_hash(TENSORS, "meta") == by_definition(TENSORS, "meta")
    assert tensor_hash((None, tensor) for _, tensor in TENSORS) == by_definition(TENSORS, names=False)


def test_known_answer():
    assert (
        tensor_hash([("w", torch.tensor([1.0, 2.0]))])
        == hashlib.sha256(b"w torch.float32 [2] " + bytes.fromhex("0000803f00000040")).hexdigest()
    )


@pytest.mark.parametrize(
    "other", [[("v", IMAGES)], [("w", IMAGES.double())], [("w", IMAGES.reshape(4, 6))], [("w", IMAGES + 1)], []]
)
def test_names_types_shapes_and_values_count(other):
    assert tensor_hash(other) != tensor_hash([("w", IMAGES)])
