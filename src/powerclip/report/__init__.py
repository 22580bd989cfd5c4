"""Tables, curves, figures of grounded phrases, and the page that shows them."""

from powerclip.report.html import write_report
from powerclip.report.tables import Table, read_evaluations, results_table

__all__ = ["Table", "read_evaluations", "results_table", "write_report"]
