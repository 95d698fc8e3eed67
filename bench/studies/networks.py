"""Networks of well-known shapes, from torch's modules, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention of `heads` heads, with separate projections.

    Args:
        width: of the activations.
        heads: number of heads.
        bias: whether the projections have one.
        causal: whether a token sees only earlier ones.
    """

    def __init__(self, width: int, heads: int, bias: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] from [B, T, width]."""
        batch, tokens, width = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class EncoderBlock(nn.Module):
    """BERT's block: normalisation after each residual, GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, True, False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(0.1)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] from [B, T, width]."""
        x = self.norms[0](x + self.drop(self.attention(x)))
        return self.norms[1](x + self.drop(self.down(functional.gelu(self.up(x)))))


class Encoder(nn.Module):
    """A sentence encoder of MiniLM's shape: 6 layers, 384 wide, 12 heads, 37 Linear layers.

    Args:
        classes: outputs of the last layer.
        layers, width, heads, words: the sizes.
    """

    def __init__(
        self, classes: int = 384, layers: int = 6, width: int = 384, heads: int = 12, words: int = 30522
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(layers))
        self.pool = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, classes] from word numbers [B, T]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.norm(self.words(tokens) + self.places(places)))
        for block in self.blocks:
            x = block(x)
        return self.pool(x.mean(dim=1))


class DecoderBlock(nn.Module):
    """Llama's block: RMSNorm before each part, a gated feed-forward part."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.attention = Attention(width, heads, False, True)
        self.gate, self.up = nn.Linear(width, inner, False), nn.Linear(width, inner, False)
        self.down = nn.Linear(inner, width, False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] from [B, T, width]."""
        x = x + self.attention(self.norms[0](x))
        y = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """A language model of Llama's shape, without positions.

    The default has 2.3e8 parameters. layers=16, width=2048, inner=5632 have 9.5e8.
    """

    def __init__(
        self, layers: int = 12, width: int = 1024, heads: int = 16, inner: int = 2816, words: int = 32000
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, words, False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, words] from word numbers [B, T]."""
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
