"""Settings of the L2-regularized logistic regression that low-shot evaluations use."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LogisticSettings:
    """Multinomial logistic regression on standardized features (after MSN's low-shot evaluation)."""

    penalties: tuple[float, ...] = (1e-1, 1e-2, 2.5e-3, 1e-3, 2.5e-4, 1e-4, 1e-5)
    """lambda of mean cross-entropy + lambda / 2 |W|^2, swept from the strongest, each started from the one before."""
    gradient_norm: float = 1e-4
    """Solved when the norm of the objective's gradient is at most this, and `relative_gradient` of lambda |W| as well."""
    relative_gradient: float = 0.01
    """The same as a share of lambda |W|, which bounds how far the weights are from the optimum's, as a share of |W|: for
    weak penalties a small gradient says little. (Not below what float32 rounds.)"""
    iterations: int = 500
    """Most passes over the images for one lambda: gradients and products with the Hessian."""
