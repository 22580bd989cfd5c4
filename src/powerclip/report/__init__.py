"""Tables, curves, grounding pictures, and the page that holds them."""

from powerclip.report.html import write_report
from powerclip.report.tables import Table, read_evaluations, results_table

__all__ = ["Table", "read_evaluations", "results_table", "write_report"]
