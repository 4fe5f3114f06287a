"""The arithmetic of alignment and nothing else: pure functions of tensors, unreduced, no model, no config, no logging.

The tables of `registry.py` are what the functions of these files declare, in this order.
"""

from prospect.losses import (
    density_ratio,
    group,
    likelihood,
    modifiers,
    paired,
    paired_coupled,
    paired_scores,
    reference_free,
    reference_point,
    registry,
    scored,
    tokenwise,
    unpaired,
)

registry.collect(unpaired, scored, likelihood, tokenwise, group)
registry.collect(paired, paired_scores, paired_coupled, density_ratio, reference_free)
registry.collect(modifiers, reference_point)
