"""From records to a plan: tokens, rows, schedule. No torch."""
