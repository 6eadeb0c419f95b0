"""What stands before MONAI Label's endpoints: threads, checks, roles, errors in one form, logs and figures."""
