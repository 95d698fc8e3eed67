"""Derive the polynomial coefficients of csrc/core/normal.h (run by hand; needs NumPy only).

Lawson's iteratively reweighted least squares converges to the minimax polynomial on Chebyshev nodes; the
coefficients are then rounded to float32 one after the other, the remaining ones refitted after each rounding,
which recovers most of what plain rounding loses.

    python csrc/tests/core/fit_polynomials.py
"""

import numpy as np


def minimax(x, target, weight, powers, fixed):
    """Coefficients of sum_k c_k x^powers[k] with least max |weight * error|, some already `fixed` {index: value}."""
    free = [k for k in range(len(powers)) if k not in fixed]
    basis = np.stack([x**p for p in powers], axis=1)
    rest = target - sum(basis[:, k] * v for k, v in fixed.items())
    lawson = np.ones_like(x) / len(x)
    for _ in range(300):
        scale = np.sqrt(lawson) * weight
        c, *_ = np.linalg.lstsq(basis[:, free] * scale[:, None], rest * scale, rcond=None)
        error = np.abs((basis[:, free] @ c - rest) * weight)
        lawson = lawson * (error + 1e-30)
        lawson /= lawson.sum()
    return dict(zip(free, c)), error.max()


def fit(name, x, target, weight, powers):
    fixed = {}
    for k in range(len(powers)):  # low orders first: they carry the most weight
        c, error = minimax(x, target, weight, powers, fixed)
        fixed[k] = float(np.float32(c[k]))
    error = np.abs((sum(v * x ** powers[k] for k, v in fixed.items()) - target) * weight).max()
    print(f"{name}: max weighted error {error:.3g} (2^{np.log2(error):.1f})")
    for k, v in fixed.items():
        print(f"  x^{powers[k]}: {np.float32(v)!r} {float(np.float32(v)).hex()}")


def nodes(low, high, n=4000):
    x = np.cos((np.arange(n) + 0.5) / n * np.pi)
    return (low + high) / 2 + (high - low) / 2 * x


if __name__ == "__main__":
    f = nodes(np.sqrt(0.5) - 1, np.sqrt(2) - 1)
    f = f[np.abs(f) > 1e-3]
    # log(1 + f) = f - f^2 / 2 + f^3 P(f); the error counts relative to the logarithm itself.
    fit("log P", f, (np.log1p(f) - f + f * f / 2) / f**3, np.abs(f**3 / np.log1p(f)), list(range(7)))
    t = nodes(1e-3, 0.5)
    # sin(pi/2 t) = t * S(t^2), cos(pi/2 t) = 1 + t^2 * C(t^2), |t| <= 1/2.
    fit("sin S", t * t, np.sin(np.pi / 2 * t) / t, np.abs(t / np.sin(np.pi / 2 * t)), list(range(4)))
    fit("cos C", t * t, (np.cos(np.pi / 2 * t) - 1) / t**2, t**2 / np.cos(np.pi / 2 * t), list(range(3)))
