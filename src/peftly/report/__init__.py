"""Reports: self-contained HTML pages, made only from the files of a run, so that they can be written again later."""

from peftly.report._page import machine_lines
from peftly.report.comparison import (
    comparison_row,
    comparison_table,
    pick_samples,
    write_comparison,
)
from peftly.report.run_page import write_report

__all__ = ["comparison_row", "comparison_table", "machine_lines", "pick_samples", "write_comparison", "write_report"]
