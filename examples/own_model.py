"""Your own model on noisy devices: what accuracy do programmed chips keep?  python examples/own_model.py"""

import torch
from torch import nn

import nft_ext as nft


class Net(nn.Module):
    """Any PyTorch model will do. The weights of the convolution and of the linear layer go onto crossbars."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Linear(16 * 8 * 8, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def train(model, images, labels, epochs=10):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def main(runs=100, epochs=10):
    torch.manual_seed(0)
    train_set, test_set = nft.data.load("digits")
    model = train(Net(), train_set.images, train_set.labels, epochs)
    right = model(test_set.images).argmax(1) == test_set.labels
    print(f"in float32: {right.float().mean():.1%}\n")

    nvm = nft.NVMDevice(weight_bits=8, device_bits=2, sigma=0.2)
    report = nft.monte_carlo(nft.convert(model, nvm), test_set, runs=runs, seed=0)
    print(report)

    worst = int(report.accuracy.per_run.argmin())
    chip = nft.program(nft.convert(model, nvm), seed=0, draw=worst)  # a plain module with that chip's weights
    right = chip(test_set.images).argmax(1) == test_set.labels
    print(f"\nthe worst chip is draw {worst}, with {right.float().mean():.1%}")
    return report


if __name__ == "__main__":
    main()
