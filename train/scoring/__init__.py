"""What is measured of models, and how it is laid out: scores, means with intervals, tables, plots."""
