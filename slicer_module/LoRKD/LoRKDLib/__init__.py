"""What the LoRKD module is made of: network, prompt, segments, and a class for each section of the panel."""
