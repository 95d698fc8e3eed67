"""Graph networks of torch_geometric: every check of support/stack_checks.py.

The nodes of one graph are one example: dim 0 of the features is no batch, so several chips take a pass each.
"""

import pytest
import torch

from support.stack_checks import CHECKS, Case, Network

torch_geometric = pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
models = pytest.importorskip("torch_geometric.nn.models")

pytestmark = pytest.mark.stacks


def graph():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 8, generator=generator), torch.randint(12, (2, 40), generator=generator)


def case(kind, share=0.99, **options):
    return Case(lambda: kind(8, 16, num_layers=2, out_channels=3, **options), graph, share, one_by_one=True)


CASES = {
    "GCN": case(models.GCN),
    "GraphSAGE": case(models.GraphSAGE),
    "GAT": case(models.GAT, heads=2),
    "GATv2": case(models.GAT, heads=2, v2=True),
    "GIN": case(models.GIN),
    "PNA": case(models.PNA, aggregators=["mean", "max"], scalers=["identity"], deg=torch.ones(9, dtype=torch.long)),
}


@pytest.fixture(scope="module", params=CASES)
def network(request):
    return Network(CASES[request.param])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_networks(network, check):
    check(network)
