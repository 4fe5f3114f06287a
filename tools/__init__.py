"""What is run once, by developers."""
