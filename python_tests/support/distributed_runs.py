"""Noisy models under DistributedDataParallel and FSDP: torchrun ... distributed_runs.py FOLDER, on two ranks.

Leaves FOLDER/rankR.json: per case what was found, True where all is as expected, or the text of a refusal.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
MINE = dict(seed=5)  # with draws=[rank]


def net():
    torch.manual_seed(0)
    return nft.convert(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), NVM)


def output(model, draw, **options):
    with nft.chips(model, **MINE, draws=[draw], **options):
        return model(X)


def refusal(call):
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return "no refusal"


def averaged(tensor):
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor / 2


def ddp():
    """In eval and in training mode, at a sigma of the rank's own: nothing of another rank's chip arrives."""
    found = []
    for training in (False, True):
        for sigma in (0.1, 0.1 * (RANK + 2)):
            model, alone = DistributedDataParallel(net(), broadcast_buffers=True).train(training), net().train(training)
            with nft.noise(model, sigma=sigma), nft.noise(alone, sigma=sigma):
                found += [torch.equal(output(model, RANK), output(alone, RANK)) for _ in range(2)]
    return all(found)


def ddp_training():
    """Each rank's steps see the rank's own chips; the weights follow the ranks' mean gradient."""
    model, alone = DistributedDataParallel(net(), broadcast_buffers=True).eval(), net().eval()  # own statistics differ
    steps = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, alone)]
    same = []
    for step in range(3):
        for m, optimizer in zip((model, alone), steps):
            optimizer.zero_grad()
            output(m, 2 * step + RANK).square().sum().backward()
        for p in alone.parameters():
            p.grad = averaged(p.grad)
        for optimizer in steps:
            optimizer.step()
        same += [torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), alone.parameters())]
    tables = [layer.noise_state()[0] for layer in nft.noisy_layers(model).values()]
    return all(same) and all(torch.equal(table, torch.from_numpy(NVM.operator_table())) for table in tables)


def fsdp2():
    model, alone = net().eval(), net().eval()
    mesh = init_device_mesh("cpu", (2,))
    for layer in nft.noisy_layers(model).values():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    mine, expected = output(model, RANK), output(alone, RANK)
    mine.square().sum().backward()
    expected.square().sum().backward()
    gradients = [
        torch.allclose(p.grad.full_tensor(), averaged(q.grad), atol=1e-6)
        for p, q in zip(model.parameters(), alone.parameters())
    ]
    return torch.equal(mine, expected) and all(gradients)


def fsdp2_method():
    """The chips of a method's step follow from the rank's generator, as in a single process."""
    model, alone = net().eval(), net().eval()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    method, target = nft.methods.OVF(sigma=0.1, beta=1e-2), torch.tensor([0, 1, 2, 0])
    losses = []
    for m in (model, alone):
        torch.manual_seed(RANK)
        losses.append(method.loss(m, X, target))
    return torch.equal(*losses)


def fsdp2_outside_its_forward():
    model = net().eval()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        return [refusal(lambda: output(model, RANK, programmed=True)), refusal(lambda: model[0](X))]


def fsdp1(original):
    model = FullyShardedDataParallel(net().eval(), device_id=torch.device("cpu"), use_orig_params=original)
    with torch.no_grad():
        refused = refusal(lambda: output(model, RANK, programmed=True))
        return [torch.equal(output(model, RANK), output(net().eval(), RANK)), refused]


FOLDER = Path(sys.argv[1])
torch.set_num_threads(1)
warnings.simplefilter("ignore")
distributed.init_process_group("gloo")
RANK = distributed.get_rank()
results = {case.__name__: case() for case in (ddp, ddp_training, fsdp2, fsdp2_method, fsdp2_outside_its_forward)}
results["fsdp1"] = {str(original): fsdp1(original) for original in (False, True)}
(FOLDER / f"rank{RANK}.json").write_text(json.dumps(results))
distributed.destroy_process_group()
