"""Where images come from and labels go: MONAI Label's datastores, mended, and volumes that clients send ahead."""
