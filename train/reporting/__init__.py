"""What a run shows while it goes on and leaves behind: bar, history, TensorBoard, provenance, pages and pictures."""
