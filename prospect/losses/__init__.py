"""The arithmetic of alignment and nothing else: pure functions of tensors, unreduced, no model, no config, no
logging."""
