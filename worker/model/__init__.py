"""The model: weights, device, encoder, and inference that survives running out of memory."""
