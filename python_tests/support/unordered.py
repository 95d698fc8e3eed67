"""A network whose description depends on the order of sets, which differs from process to process."""

from torch import nn


class Unordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.names, self.known = {"d", "e", "f"}, lambda x: x in {"a", "b", "c"}

    def forward(self, x):
        return x if self.known(x) else None
