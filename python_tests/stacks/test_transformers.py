"""Networks of transformers, from their configurations: every check of support/stack_checks.py."""

import pytest
import torch

from support.stack_checks import CHECKS, Case, Network

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.stacks

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
WIDE = dict(intermediate_size=48, **SIZES)


def ids(vocabulary=40, shape=(3, 7)):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1))


def text(**further):
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": ids(), "attention_mask": mask, **further}


def image(size=16, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, num_labels=3, **WIDE))


def gpt2():
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, **WIDE))


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=16, patch_size=4, num_labels=3, **WIDE)
    )


def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=40, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **WIDE
    )
    return transformers.MixtralForCausalLM(config)


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=40, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=10,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def sound():
    mel = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(1))
    return {"input_features": mel, "decoder_input_ids": ids()}


CASES = {
    "BERT": Case(bert, text),
    "GPT-2": Case(gpt2, text),
    "Llama": Case(llama, text),
    "ViT": Case(vit, lambda: {"pixel_values": image()}),
    "Mixtral": Case(mixtral, text),
    "Whisper": Case(whisper, sound),
}


@pytest.fixture(scope="module", params=CASES)
def network(request):
    return Network(CASES[request.param])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_networks(network, check):
    check(network)
