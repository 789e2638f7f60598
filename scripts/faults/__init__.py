"""Long fault tests of updates, installs and packaging: `scripts/fault`, one file for each kind of fault.

A row is one test; its trials are numbered, and a number alone decides what its trial does. So a row can be cut and go
on, and `scripts/test` runs a short share of each.
"""
