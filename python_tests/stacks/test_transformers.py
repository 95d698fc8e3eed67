"""Networks of transformers, from their configurations: every check of support/stack_checks.py."""

import pytest
import torch

import nft_ext as nft
from support.stack_checks import CHECKS, NVM, Case, Network

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


# ---- language models


def perplexity(model, tokens):
    return float(model(input_ids=tokens, labels=tokens).loss.double().exp())


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Mixtral"])
def test_the_perplexity_over_chips_is_that_of_each_programmed_chip(name):
    network = Network(CASES[name])
    tokens = ids()
    report = nft.over_chips(network.noisy, lambda model: perplexity(model, tokens), runs=3, seed=2, progress=False)
    found = report.metrics["value"]
    with torch.no_grad():
        expected = [perplexity(nft.program(network.noisy, seed=2, draw=draw), tokens) for draw in range(3)]
    assert list(found.per_run) == pytest.approx(expected, rel=1e-5)
    assert len(set(found.per_run)) == 3


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Mixtral"])
def test_generation_on_a_chip_is_that_of_the_programmed_network(name):
    """Also with the cache of keys and values, which holds what the same chip computed."""
    network = Network(CASES[name])
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    chip = nft.program(network.noisy, seed=3, draw=5)
    with torch.no_grad(), nft.chips(network.noisy, seed=3, draws=[5], programmed=True):
        for cache in (True, False):
            found = network.noisy.generate(ids(), use_cache=cache, **options)
            assert found.shape == (3, 12)
            assert torch.equal(found, chip.generate(ids(), use_cache=cache, **options))


def test_a_tied_embedding_stays_tied_and_is_noisy_only_where_it_multiplies():
    """GPT-2 reads one parameter as a table of embeddings, digital, and as the last product, on crossbars."""
    model = Network(CASES["GPT-2"]).noisy
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.weight is head.weight
    layers = nft.noisy_layers(model)
    assert "lm_head" in layers and "transformer.wte" not in layers
    with torch.no_grad(), nft.chips(model, seed=3, draws=[5]):
        assert torch.equal(table(ids()), table.weight[ids()])
        x = torch.eye(32)
        expected = nft.program_weights(head.weight, NVM, seed=3, draws=[5], stream=layers["lm_head"].stream)[0]
        torch.testing.assert_close(head(x), expected.T, rtol=1e-6, atol=1e-7)
    chip = nft.program(model, seed=3, draw=5)
    assert torch.equal(chip.get_input_embeddings().weight, table.weight)
    assert not torch.equal(chip.get_output_embeddings().weight, table.weight)


def test_conv1d_of_gpt2_is_stored_the_other_way_round():
    """Its weight is [in, out]: with a step per output, each column has a step of its own."""
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=1, n_head=4)
    plain = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        plain.transformer.h[0].mlp.c_fc.weight[:, 7] *= 100.0
    nvm = nft.NVMDevice(sigma=0.0, scale="output")
    weight = nft.program(nft.convert(plain, nvm), seed=0).transformer.h[0].mlp.c_fc.weight
    original = plain.transformer.h[0].mlp.c_fc.weight
    step = original.abs().amax(0) / 255
    assert ((weight - original).abs() <= 0.5001 * step).all()


def test_every_expert_of_mixtral_is_on_crossbars():
    network = Network(CASES["Mixtral"])
    rows = {row.name: row for row in nft.coverage(network.noisy).rows}
    experts = [row for name, row in rows.items() if ".experts." in name]
    assert experts and all(row.place == "crossbar" and row.crossbars == 4 for row in experts)
    chip = nft.program(network.noisy, seed=3, draw=5)
    for row in experts:
        before, after = network.plain.get_parameter(row.name), chip.get_parameter(row.name)
        assert all(not torch.equal(before[e], after[e]) for e in range(4))
