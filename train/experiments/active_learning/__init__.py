"""Simulated annotation: how many labelled cases each strategy of active learning needs for the same Dice."""
