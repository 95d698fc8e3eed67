"""The operators' schemas are frozen: compiled graphs and exported programs hold them."""

import pytest
import torch

import nft_ext  # noqa: F401  (registers the operators)

SCHEMAS = {
    "weight_step": "(Tensor weight, int weight_bits, int[] scaling=[]) -> Tensor",
    "weight_step_many": "(Tensor[] weights, int[] weight_bits) -> Tensor",
    "quantize": "(Tensor weight, Tensor step, int weight_bits, int[] scaling=[]) -> Tensor",
    "program": "(Tensor weight, Tensor? codes, Tensor? step, Tensor table, Tensor key, int stream, int[] spec, "
    "ScalarType dtype) -> Tensor",
    "program_many": "(Tensor[] weights, Tensor?[] codes, Tensor[] steps, Tensor[] tables, Tensor key, int[] streams, "
    "int[] specs, Tensor[] scales, ScalarType dtype, bool channels_last=False) -> Tensor[]",
    "epilogue_": "(Tensor(a!) y, Tensor? scale, Tensor? shift, Tensor? residual, bool relu) -> ()",
    "noisy_linear": "(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, "
    "Tensor key, int stream, "
    "int[] spec, bool shared) -> Tensor",
    "noisy_linear_backward": "(Tensor grad, Tensor x, Tensor weight, Tensor? codes, Tensor? step, Tensor table, "
    "Tensor key, "
    "int stream, int[] spec, bool shared, int wanted) -> (Tensor, Tensor, Tensor)",
    "noisy_conv2d": "(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, "
    "Tensor key, int stream, "
    "int[] spec, int[] stride, int[] padding, int[] dilation, int groups, bool shared) -> Tensor",
    "noisy_conv2d_backward": "(Tensor grad, Tensor x, Tensor weight, Tensor? codes, Tensor? step, Tensor table, "
    "Tensor key, "
    "int stream, int[] spec, int[] stride, int[] padding, int[] dilation, int groups, bool shared, "
    "int wanted) -> (Tensor, Tensor, Tensor)",
    "noisy_linear_fused": "(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, "
    "Tensor key, int stream, "
    "int[] spec, bool shared, Tensor? scale, Tensor? shift, Tensor? residual, bool relu) -> Tensor",
    "noisy_conv2d_fused": "(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, "
    "Tensor key, int stream, "
    "int[] spec, int[] stride, int[] padding, int[] dilation, int groups, bool shared, Tensor? scale, "
    "Tensor? shift, Tensor? residual, bool relu) -> Tensor",
    "convolution_backward": "(Tensor grad, Tensor x, Tensor weight, int[]? bias_sizes, int[] stride, int[] padding, "
    "int[] dilation, bool transposed, int[] output_padding, int groups, bool[3] wanted) -> "
    "(Tensor, Tensor, Tensor)",
    "noisy_cascade": "(Tensor[] inputs, Tensor[] weights, Tensor?[] biases, Tensor[] tables, "
    "Tensor[] keys, int[] streams, int[] specs, Tensor?[] scales, Tensor?[] shifts, "
    "int[] wiring, int[] kept) -> Tensor[]",
    "draw_key": "(Tensor like) -> Tensor",
    "checked_inputs": "(Tensor x, Tensor[] others, str[] names, str model, SymInt parts) -> Tensor",
    "draw_keys": "(Tensor like, int count) -> Tensor[]",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name):
    operator = getattr(torch.ops.nft_ext, name).default
    assert str(operator._schema) == f"nft_ext::{name}{SCHEMAS[name]}"


def test_these_are_all_the_operators():
    registered = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("nft_ext::")}
    assert registered == {f"nft_ext::{name}" for name in SCHEMAS}


@pytest.mark.parametrize("name", SCHEMAS)
def test_only_keys_are_random_in_torchs_eyes(name):
    """All other noise is a function of the key, so compilers may reorder, deduplicate and recompute it."""
    tags = getattr(torch.ops.nft_ext, name).default.tags
    assert (torch.Tag.nondeterministic_seeded in tags) == (name in ("draw_key", "draw_keys"))
