"""The report: scores and predictions -> one self-contained HTML page."""

from reasoning.evaluation.report.page import write_report

__all__ = ["write_report"]
