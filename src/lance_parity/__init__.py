"""Parity of openlance with the released model: comparisons with golden vectors of its code (`run.verify`), and a report
of a checkpoint on a machine (`report.report`).

A plugin: an entry point adds the command `openlance verify`, and nothing in openlance imports it.
"""
