"""LoRKD for MONAI Label: one low-rank expert for each department, decomposed from a text-prompted foundation model."""

__version__ = "0.1.0"
