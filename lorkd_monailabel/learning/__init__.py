"""Learning: what the server's Train button and the recipes in ``train/`` share."""
