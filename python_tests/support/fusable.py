"""Small noisy networks for nft.fuse, whose batch norms do something."""

import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)


def trained(net, seed=0):
    """The net, noisy, in eval mode, with BatchNorms that do something."""
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.affine:
                m.weight.data.normal_(generator=g)
                m.bias.data.normal_(generator=g)
            if m.running_mean is not None:
                m.running_mean.normal_(generator=g)
                m.running_var.uniform_(0.5, 2, generator=g)
    return nft.convert(net.eval(), NVM)


class Net(nn.Module):
    """A forward given as a function of the module and x."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(out=4, **options):
    return nn.Conv2d(4, out, 3, padding=1, **options)
