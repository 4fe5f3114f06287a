"""The paper's theorems as experiments on policies small enough to be exact: claim, prediction, measured, verdict."""
