"""What several tests share: toy models, tokenizers and feedback, whole runs, oracles, marks.

Fixtures of one room stand in its conftest.
"""
