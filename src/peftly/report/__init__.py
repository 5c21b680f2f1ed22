"""Self-contained HTML pages made from the files of a run. May import: `utils`, and `evaluation` for its types.

run_page    page of one run
comparison  page, and table for the screen, of several runs
epochs      table of the epochs of a run
charts      charts as SVG, drawn with matplotlib
page        templates, JSON files, and the description of a machine
"""

from peftly.report.comparison import comparison_row, comparison_table, pick_samples, write_comparison
from peftly.report.page import machine_lines
from peftly.report.run_page import write_report

__all__ = [
    "comparison_row",
    "comparison_table",
    "machine_lines",
    "pick_samples",
    "write_comparison",
    "write_report",
]
