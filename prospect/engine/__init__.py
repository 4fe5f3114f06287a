"""The only place that runs a model: trees of token ids in, token log-probs out."""
