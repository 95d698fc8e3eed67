"""Negative feedback training (OVF) in a plain PyTorch loop.  python examples/ovf_plain_loop.py"""

import torch
from torch import nn

import nft_ext as nft

SIGMA = 0.3


def network():
    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, 10),
    )


def train(method, images, labels, epochs):
    """Trains one network by `method`. Each step draws fresh chips; gradients go to the float weights."""
    torch.manual_seed(0)
    model = method.prepare(network(), nft.NVMDevice())  # a noisy copy, at the method's sigma
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            loss = method.loss(model, images[rows], labels[rows])
            loss.backward()
            optimizer.step()
        schedule.step()
    return method.finish(model).eval()  # plain again


def main(epochs=10, runs=100):
    train_set, test_set = nft.data.load("digits")
    methods = {
        "vanilla": nft.methods.Vanilla(),
        "noise injection": nft.methods.NoiseInjection(sigma=SIGMA),
        "OVF": nft.methods.OVF(sigma=SIGMA, beta=1e-3),
    }
    accuracy = {}
    for name, method in methods.items():
        model = train(method, train_set.images, train_set.labels, epochs)
        noisy = nft.convert(model, nft.NVMDevice(sigma=SIGMA))
        accuracy[name] = nft.monte_carlo(noisy, test_set, runs=runs, seed=0).accuracy
        print(f"{name:16} {accuracy[name].mean:.1%} +- {accuracy[name].ci95:.1%} on {runs} chips at sigma {SIGMA}")
    return accuracy


if __name__ == "__main__":
    main()
