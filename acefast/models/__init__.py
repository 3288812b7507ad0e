"""The model families: one folder each, the same seams (see ``acefast.conditions``)."""
