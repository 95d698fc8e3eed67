"""OVF on networks of transformers under DDP and FSDP2: torchrun ... stack_ranks.py FOLDER, on two ranks.

Leaves FOLDER/rankR.json: per case the found truths, by what they say.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import nft_ext as nft
from bench.harness import torchvision_operators

METHOD = nft.methods.OVF(sigma=0.1, beta=1e-2, feedbacks=1, a_b=1 / 2)
STEPS = 3


def llama():
    """A classifier of sequences with Llama's blocks."""
    torchvision_operators.declare()  # before the import, which ends without
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=24, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    return METHOD.prepare(transformers.LlamaForSequenceClassification(config))


def batch(step):
    """The rank's own sentences of a step."""
    generator = torch.Generator().manual_seed(10 * step + RANK)
    ids = 1 + torch.randint(19, (4, 6), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones(4, 6).long(), "labels": (ids[:, -1] < 10).long()}


def loss_of(model, step):
    torch.manual_seed(10 * step + RANK)  # the rank's own chips
    return METHOD.loss(model, batch(step))


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_own_chip(model):
    with torch.no_grad(), nft.chips(model, seed=5, draws=[RANK]):
        given = batch(9)
        return model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits


def compared(model):
    """Trains the wrapped model beside a single process that averages both ranks' gradients."""
    alone = llama()
    # Before the first forward: FSDP2's root leaves its parameters whole until a backward.
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, alone)]
    same_output = torch.equal(on_own_chip(model), on_own_chip(alone))
    same_loss, same_weights, finite = [], [], []
    start = {name: p.detach().clone() for name, p in alone.named_parameters()}
    for step in range(STEPS):
        losses = []
        for m, optimizer in zip((model, alone), optimizers):
            optimizer.zero_grad()
            losses.append(loss_of(m, step))
            losses[-1].backward()
        for p in alone.parameters():
            if p.grad is not None:
                distributed.all_reduce(p.grad)
                p.grad /= 2
        finite += [bool(whole(p.grad).isfinite().all()) for p in model.parameters() if p.grad is not None]
        for optimizer in optimizers:
            optimizer.step()
        same_loss.append(torch.allclose(losses[0], losses[1], rtol=1e-4))
        pairs = zip(model.parameters(), alone.parameters())
        same_weights += [torch.allclose(whole(p.detach()), q, rtol=1e-4, atol=1e-6) for p, q in pairs]
    moved = max(float((p - start[name]).detach().abs().max()) for name, p in alone.named_parameters())
    keys = [name.removeprefix("module.") for name in model.state_dict()]
    return {
        "its own chip, bit for bit": same_output,
        "the same losses": all(same_loss),
        "the same weights after every step": all(same_weights),
        "finite gradients": all(finite) and len(finite) > 0,
        "the weights moved": moved > 1e-3,
        "the same keys": keys == list(alone.state_dict()),
    }


def ddp():
    return compared(DistributedDataParallel(llama()))


def fsdp2():
    model = llama()
    mesh = init_device_mesh("cpu", (2,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = sum(isinstance(p, DTensor) for p in model.parameters())
    return {**compared(model), "every parameter sharded": sharded == len(list(model.parameters()))}


FOLDER = Path(sys.argv[1])
torch.set_num_threads(1)
warnings.simplefilter("ignore")
distributed.init_process_group("gloo")
RANK = distributed.get_rank()
results = {case.__name__: case() for case in (ddp, fsdp2)}
(FOLDER / f"rank{RANK}.json").write_text(json.dumps(results))
distributed.destroy_process_group()
