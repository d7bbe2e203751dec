"""Covariance of a fit whose errors are alike within groups of measurements.

The inverse Hessian is the covariance only where measurements err independently. Points followed from picture to picture do not: errors go
with blur and light, which neighbouring pictures share, and with the slant and texture of a surface, which stays in one part of the picture
for long. The sandwich H^-1 B H^-1 (Huber 1967; Liang and Zeger 1986), with B the squared gradients of whole clusters, holds whatever
happens inside a cluster. Where clusters cross, here runs of pictures and parts of the picture, their B are added (Cameron, Gelbach and
Miller 2011; what both have in common is left in, so that the sum stays positive and errs on the safe side). The sandwich is too small for
few clusters, so a share of the inverse Hessian, scaled by the design effect found, is added (Morel, Bokossa and Neerchal 2003).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_MOST_MODEL = 0.5
"""Largest share of the inverse Hessian that is added: Morel's d = 2."""
_TINY = 1e-30


def runs(count: int, length: int, at_least: int) -> NDArray[np.int64]:
    """Cluster (count,) of things in a row: runs of `length`, or shorter where that gives fewer than `at_least` clusters."""
    return np.arange(count) * min(count, max(at_least, count // length)) // max(count, 1)


def posterior_covariance(
    hessian: Float, scores: Float, clusterings: Sequence[NDArray[np.int64]], variance: float, precision: Float
) -> Float:
    """Covariance (n, n) of parameters at a minimum of sum w rho(e) with Gaussian priors of this precision (n,).

    hessian (n, n): of the data, for measurements of unit variance; scores (N, n): its gradient, point by point; clusterings: labels (N,),
    from 0; variance: what measurements of unit weight show, the least that is believed. Where the data say nothing the prior is returned.
    """
    n = len(precision)
    size = np.sqrt(np.maximum(hessian.diagonal(), _TINY))
    H = hessian / np.outer(size, size) + 1e-9 * np.eye(n)
    seen = np.abs(scores).sum(1) > 0
    u = scores[seen] / size
    B, fewest = np.zeros((n, n)), len(u)
    for labels in clusterings:
        sums = np.stack([np.bincount(labels[seen], weights=column) for column in u.T], 1)
        clusters = len(np.unique(labels[seen]))
        B += sums.T @ sums * clusters / max(clusters - 1, 1)
        fewest = min(fewest, clusters)
    effect = max(variance, 1e-12, float(np.trace(np.linalg.solve(H, B))) / n)
    share = min(_MOST_MODEL, n / (fewest - n)) if fewest > n else _MOST_MODEL
    information = H @ np.linalg.solve(B + share * effect * H, H)
    inverse = np.linalg.inv(information + np.diag(precision / size**2 + _TINY))
    return np.asarray(inverse / np.outer(size, size), np.float64)
