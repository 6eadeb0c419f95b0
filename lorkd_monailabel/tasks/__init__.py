"""What MONAI Label calls a task: a request -> the package's parts -> files and JSON."""
