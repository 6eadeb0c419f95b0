"""Training on the server: decomposition and retraining of a department, in a process of its own."""
