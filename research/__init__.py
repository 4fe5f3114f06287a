"""What argues for the science and is not shipped."""
