"""Measurements: against peers (`compare`), and of the parts (`micro`). See README.md beside this file."""
