"""Lists of cases: converters from the layouts of other tools, and the check that finds what will hurt."""
