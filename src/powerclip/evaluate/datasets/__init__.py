"""Readers of evaluation data sets, one file a release or layout."""
