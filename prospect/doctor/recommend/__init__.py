"""From feedback to a proposal for training: measured facts, rules with their sources, and what is not known."""
