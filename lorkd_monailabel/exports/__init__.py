"""Exports of a department: base and expert fused, in formats that other programs load without this package."""
