"""Checkpoints of others: what SAT and LoRKD released, read into bases and experts, and written again for SAT."""
