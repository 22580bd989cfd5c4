"""Tables, curves, grounding pictures, and the page that holds them."""

from powerclip.report.html import write_report
from powerclip.report.tables import results_markdown, results_table

__all__ = ["results_markdown", "results_table", "write_report"]
