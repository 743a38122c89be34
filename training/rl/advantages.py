"""From scores to advantages: the KL penalty, generalised advantage estimation, groups. NumPy, float64.

T: tokens of one answer; G: answers to one prompt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def token_rewards(score: float, logp_T: Floats, ref_logp_T: Floats, kl_coeff: float) -> Floats:
    """-kl_coeff (log p - log p_ref) of each token, and the score at the last one (Ziegler et al. 2019, eq. 2)."""
    rewards_T: Floats = -kl_coeff * (np.asarray(logp_T, np.float64) - ref_logp_T)
    rewards_T[-1] += score
    return rewards_T


def gae(rewards_T: Floats, values_T: Floats, gamma: float, lam: float) -> Floats:
    """Advantages (T) of an answer that ends with its last token: A_t = d_t + gamma lam A_t+1 with
    d_t = r_t + gamma V_t+1 - V_t (Schulman et al. 2016, eq. 16); nothing comes after the end."""
    advantages_T = np.zeros(len(rewards_T))
    following = following_value = 0.0
    for t in reversed(range(len(rewards_T))):
        delta = rewards_T[t] + gamma * following_value - values_T[t]
        following = delta + gamma * lam * following
        following_value = values_T[t]
        advantages_T[t] = following
    return advantages_T


def whitened(values: Floats) -> Floats:
    """Values of mean 0 and variance 1; of equal ones, zeros."""
    centred: Floats = np.asarray(values, np.float64) - np.mean(values)
    centred /= np.sqrt(np.mean(centred**2) + 1e-8)
    return centred


def group_advantages(scores_G: Floats, scaled: bool = True) -> Floats:
    """(s - mean) of the answers to one prompt, over their standard deviation (n - 1) where `scaled` (Shao et al. 2024,
    section 4.1.2; the 1e-4 is TRL's)."""
    centred_G: Floats = np.asarray(scores_G, np.float64) - np.mean(scores_G)
    if scaled:
        centred_G /= np.std(scores_G, ddof=1) + 1e-4
    return centred_G


def explained_variance(values: Floats, returns: Floats) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 as good as a constant, NaN for equal returns."""
    variance = np.var(returns)
    return float(1 - np.var(returns - values) / variance) if variance > 0 else float("nan")


def next_kl_coeff(kl_coeff: float, kl: float, target: float | None) -> float:
    """The coefficient after a round with `kl` nats an answer: K (1 + 0.1 e), with e = kl / target - 1 kept within
    -0.2 and 0.2 (Ziegler et al. 2019, section 2.2); without a target, the same."""
    if target is None:
        return kl_coeff
    return kl_coeff * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))
