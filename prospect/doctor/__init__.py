"""The doctor: what is in feedback, what is wrong with it, and what to train with."""
