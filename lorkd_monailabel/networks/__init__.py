"""Networks: the text-prompted segmenter and the low-rank experts over it."""
