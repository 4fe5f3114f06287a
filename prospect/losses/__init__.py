"""The arithmetic of alignment and nothing else: pure functions of tensors, unreduced, no model, no config, no logging.

The tables of `registry.py` are what the functions of these files declare, in this order.
"""

from prospect.losses import (
    likelihood,
    modifiers,
    paired,
    reference_free,
    reference_point,
    registry,
    scored,
    tokenwise,
    unpaired,
)

registry.collect(unpaired, scored, likelihood, tokenwise, paired, reference_free, modifiers, reference_point)
