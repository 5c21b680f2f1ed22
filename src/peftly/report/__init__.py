"""Self-contained HTML pages made from data reports and the files of a run.

May import: `utils`, `data`, and `evaluation` for its types.

run_page     page of one run
comparison   page, and table for the screen, of several runs
audit_page   page of a data audit
token_units  token ids of an example as readable units
epochs       table of the epochs of a run, for its page and for the screen
learning_rates  losses at rising learning rates
charts       charts as SVG, drawn with matplotlib
page         templates, JSON files, and the description of a machine
"""

from peftly.report.audit_page import ShownExample, finding_rows, length_rows, write_audit
from peftly.report.comparison import comparison_note, comparison_row, comparison_table, pick_samples, write_comparison
from peftly.report.epochs import epoch_table
from peftly.report.learning_rates import rate_lines, write_rates
from peftly.report.page import machine_lines
from peftly.report.run_page import write_report
from peftly.report.token_units import TokenUnit, answer_units, example_units, raw_units, visible

__all__ = [
    "ShownExample",
    "TokenUnit",
    "answer_units",
    "comparison_note",
    "comparison_row",
    "comparison_table",
    "epoch_table",
    "example_units",
    "finding_rows",
    "length_rows",
    "machine_lines",
    "pick_samples",
    "rate_lines",
    "raw_units",
    "visible",
    "write_audit",
    "write_comparison",
    "write_rates",
    "write_report",
]
